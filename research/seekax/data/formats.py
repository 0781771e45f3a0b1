"""Files of text: plain, JSONL (also gzipped) and parquet, read as a stream."""

from collections.abc import Iterator
import dataclasses
import gzip
import json
import pathlib
from typing import Any, BinaryIO
import zlib

from seekax.config import InputError

_PARQUET_ROWS = 1024  # Read at a time.


class DataError(InputError):
  """Data that cannot work; the message says what, where, the fix."""


class NotUtf8Error(DataError):
  """A file has another coding."""


@dataclasses.dataclass(frozen=True)
class Document:
  """A text and its name, which is unique and the same on every machine."""

  name: str
  text: str


def read_file(path: pathlib.Path, name: str) -> Iterator[Document]:
  """Yields the documents of a file, without the empty ones.

  Args:
    path: `.jsonl` and `.jsonl.gz` have an object with a string `text` on each
      line, `.parquet` a column `text` of strings; any other file is one text.
    name: of the document, or of all of them, followed by `:line` or `:row`.

  Raises:
    DataError: the file is unreadable, or not what its name says.
  """
  if not path.is_file():  # A pipe would block; a dangling link has no text.
    raise DataError(f'{path} is not a regular file; remove it from the source')
  try:
    if path.name.endswith('.jsonl.gz'):
      with gzip.open(path) as file:
        yield from _read_lines(file, path, name)
    elif path.suffix == '.jsonl':
      with path.open('rb') as file:
        yield from _read_lines(file, path, name)
    elif path.suffix == '.parquet':
      yield from _read_parquet(path, name)
    elif path.suffix == '.array_record':
      raise DataError(
        f'{path} is a shard of tokens; give the folder that seekax tokenize '
        'wrote, as a source of its own'
      )
    elif text := _decode(path.read_bytes(), path):
      yield Document(name, text)
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise DataError(
      f'{path} is no whole gzip file ({error}); write it again'
    ) from error
  except OSError as error:
    raise unreadable(path, error) from error


def unreadable(path: Any, error: OSError) -> DataError:
  """What to raise for a file or folder that the system doesn't give."""
  return DataError(
    f'cannot read {path} ({error.strerror}); check its permissions'
  )


def _decode(content: bytes, path: pathlib.Path, offset: int = 0) -> str:
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    raise NotUtf8Error(
      f'{path} is not UTF-8 at byte {offset + error.start}; convert it to '
      'UTF-8 or remove it from the source'
    ) from error


def _read_lines(
  file: BinaryIO, path: pathlib.Path, name: str
) -> Iterator[Document]:
  offset = 0
  # Of bytes: JSON strings may hold U+2028 and its kin unescaped.
  for number, content in enumerate(file, 1):
    line = _decode(content, path, offset)
    offset += len(content)
    if line.strip() and (text := _parse_line(line, f'{path}:{number}')):
      yield Document(f'{name}:{number}', text)


def _parse_line(line: str, where: str) -> str:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise DataError(
      f'{where} is not JSON ({error}); each line must be one object with a '
      "string 'text'"
    ) from error
  text = record.get('text') if isinstance(record, dict) else None
  if not isinstance(text, str):
    raise DataError(f"{where} is not a JSON object with a string 'text'")
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise DataError(
      f"{where} has a lone surrogate in 'text' at character {error.start}; "
      'write valid Unicode'
    ) from error
  return text


def _read_parquet(path: pathlib.Path, name: str) -> Iterator[Document]:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise DataError(
      f"{path}: parquet needs pyarrow; pip install 'seekax[data]'"
    ) from error
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      kinds = {field.name: field.type for field in file.schema_arrow}
      if not _is_string(kinds.get('text')):
        raise DataError(f"{path} has no column 'text' of strings")
      row = 0
      for batch in file.iter_batches(_PARQUET_ROWS, columns=['text']):
        for text in batch.column(0).to_pylist():
          row += 1
          if text:
            yield Document(f'{name}:{row}', text)
  except UnicodeDecodeError as error:
    raise NotUtf8Error(f'{path} is not UTF-8 in row {row + 1}') from error
  except pyarrow.ArrowException as error:
    raise DataError(f'{path} is no parquet file ({error})') from error


def _is_string(kind: Any) -> bool:
  return str(kind) in ('string', 'large_string', 'string_view')
