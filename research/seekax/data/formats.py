"""Streams text files: plain, JSON lines (also gzipped) and parquet."""

from collections.abc import Iterator, Sequence
import gzip
import io
import json
import pathlib
from typing import Any
import zlib

from seekax.data.reading_rules import (
  DataError,
  DEFAULT_RULES,
  Document,
  Messages,
  NotTextError,
  NotUtf8Error,
  Rules,
)

# File name endings match in any letter case.
_LINES = ('.jsonl', '.ndjson')
_GZIPPED_LINES = ('.jsonl.gz', '.ndjson.gz')
_BOM = '\ufeff'
_HEAD_BYTES = 1 << 16  # Read to tell whether a file that is too long is text.
_MAX_BLANK_LINES = 1_000_000  # In a row; a small gzip file may hold many more.
# Rows read at a time. Fewer are slower; more may each take a whole dictionary.
_PARQUET_ROWS, _FEWEST_PARQUET_ROWS = 64, 4
_PARQUET_BUFFER_BYTES = 1 << 20
# Limits on the conversations that are rendered together.
_RENDERED_ROWS = 512
_RENDERED_BYTES = 1 << 20
_MAX_REASON_CHARACTERS = 200


def read_file(
  path: pathlib.Path, name: str, rules: Rules = DEFAULT_RULES
) -> Iterator[Document]:
  """Yields the documents of a file, without the empty ones.

  A byte order mark at the start of the file or of a line is dropped.

  Args:
    path: JSON lines (`.jsonl`, `.ndjson`, also with `.gz`) have an object with
      the text, or with `messages`, on each line, `.parquet` a column of
      strings; any other file is one text.
    name: name of the document; several get `:line` or `:row` after it.
    rules: how files are read.

  Raises:
    NotTextError: the file is not text, and its name isn't one of data.
    DataError: the file is unreadable, not what its name says, or too long.
  """
  if not path.is_file():  # A pipe would block; a dangling link has no text.
    raise NotTextError(
      f'{path} is not a regular file; remove it from the source'
    )
  ending = path.name.lower()
  try:
    if ending.endswith(_GZIPPED_LINES):
      with gzip.open(path) as file:
        yield from _rendered(_read_lines(file, path, name, rules), rules)
    elif ending.endswith(_LINES):
      with path.open('rb') as file:
        yield from _rendered(_read_lines(file, path, name, rules), rules)
    elif ending.endswith('.parquet'):
      yield from _read_parquet(path, name, rules)
    elif ending.endswith('.array_record'):
      raise DataError(
        f'{path} is a shard of tokens; give the folder that seekax tokenize '
        'wrote, as a source of its own'
      )
    elif text := _read_text(path, rules):
      yield Document(name, text)
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise DataError(
      f'{path} is no whole gzip file ({error}); write it again'
    ) from error
  except OSError as error:
    raise unreadable(path, error) from error


def check_length(path: pathlib.Path, rules: Rules = DEFAULT_RULES) -> None:
  """Raises what `read_file` would for a file's length, without reading it all.

  Raises:
    DataError: it is text, and too long.
    NotTextError: it is too long and not text.
  """
  others = (*_LINES, *_GZIPPED_LINES, '.parquet', '.array_record')
  if path.stat().st_size > rules.max_document_bytes and not (
    path.name.lower().endswith(others)
  ):
    _read_text(path, rules)


def unreadable(path: object, error: OSError) -> DataError:
  """The error for a file or folder that the system can't read."""
  return DataError(
    f'cannot read {path} ({error.strerror}); check its permissions'
  )


def _too_long(where: str, rules: Rules) -> DataError:
  return DataError(
    f'{where} is longer than {rules.max_document_bytes} bytes; cut it into '
    f'several documents, or raise {rules.limit_option} (a document is held in '
    'memory several times)'
  )


def _read_text(path: pathlib.Path, rules: Rules) -> str:
  """Reads a whole file; never reads more than the limit."""
  with path.open('rb') as file:
    content = file.read(_HEAD_BYTES)
    try:
      content.decode('utf-8')
    except UnicodeDecodeError as error:
      # The last character may be incomplete.
      if error.start < _HEAD_BYTES - 4:
        raise _not_utf8(path, error.start) from error
    if path.stat().st_size <= rules.max_document_bytes:
      content += file.read(rules.max_document_bytes + 1 - len(content))
    if max(path.stat().st_size, len(content)) > rules.max_document_bytes:
      raise _too_long(str(path), rules)
  try:
    return content.decode('utf-8').removeprefix(_BOM)
  except UnicodeDecodeError as error:
    raise _not_utf8(path, error.start) from error


def _not_utf8(path: pathlib.Path, offset: int) -> NotUtf8Error:
  return NotUtf8Error(
    f'{path} is not UTF-8 at byte {offset}; convert it to UTF-8 or remove it '
    'from the source'
  )


def _read_lines(
  file: io.BufferedIOBase, path: pathlib.Path, name: str, rules: Rules
) -> Iterator[tuple[Document | Messages, str, str, int]]:
  """Yields the rows that `_rendered` takes."""
  offset, number, blank = 0, 0, 0
  # Splits bytes, not text: JSON strings may hold U+2028 and similar unescaped.
  while content := file.readline(rules.max_document_bytes + 1):
    number += 1
    where = f'{path}:{number}'
    if len(content) > rules.max_document_bytes:
      raise _too_long(f'the line {where}', rules)
    try:
      line = content.decode('utf-8').removeprefix(_BOM)
    except UnicodeDecodeError as error:
      # Not NotTextError: earlier lines of the file may be in use already.
      raise DataError(str(_not_utf8(path, offset + error.start))) from error
    offset += len(content)
    if not line.strip():
      blank += 1
      if blank > _MAX_BLANK_LINES:
        raise DataError(f'{where}: {blank} lines in a row are blank; cut them')
      continue
    blank = 0
    found = _parse_line(line, where, rules.text_field)
    if isinstance(found, str) and found:
      yield Document(f'{name}:{number}', found), '', '', 0
    elif not isinstance(found, str):
      yield found, f'{name}:{number}', where, len(content)


def _parse_line(line: str, where: str, field: str) -> str | Messages:
  """Returns a line's text or its messages."""
  try:
    # Numbers aren't used, and Python refuses to convert very long ones.
    record = json.loads(line, parse_int=_no_number)
  except (ValueError, RecursionError) as error:
    raise DataError(
      f'{where} is not JSON ({error}); each line must be one object with a '
      f'string {field!r}'
    ) from error
  fields = record if isinstance(record, dict) else {}
  found = fields.get(field)
  if found is None and isinstance(fields.get('messages'), list):
    try:
      spelt = json.dumps(fields['messages'], ensure_ascii=False)
    except RecursionError as error:
      raise DataError(f"{where} has 'messages' nested too deeply") from error
    _check_unicode(spelt, where, 'messages')
    return fields['messages']
  if not isinstance(found, str):
    raise DataError(
      f'{where} is not a JSON object with a string {field!r}, nor with '
      "'messages'; data.text_field (tokenize: --text_field) names another field"
    )
  _check_unicode(found, where, field)
  return found


def _no_number(digits: str) -> int:
  del digits
  return 0


def _check_unicode(text: str, where: str, what: str) -> None:
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise DataError(
      f'{where} has a lone surrogate in {what!r} at character {error.start}; '
      'write valid Unicode'
    ) from error


def _rendered(
  rows: Iterator[tuple[Document | Messages, str, str, int]], rules: Rules
) -> Iterator[Document]:
  """Turns conversations into documents, many at a time, in order.

  Args:
    rows: (document or messages, name of the document to make, its place in the
      file, number of bytes).
    rules: how to render.
  """
  waiting, conversations, num_bytes = [], 0, 0
  for row in rows:
    found, size = row[0], row[3]
    if isinstance(found, Document):
      if not waiting:
        yield found
        continue
      size = size or len(found.text)
    else:
      conversations += 1
    waiting.append(row)
    num_bytes += size
    if conversations >= _RENDERED_ROWS or num_bytes >= _RENDERED_BYTES:
      yield from _render(waiting, rules)
      waiting, conversations, num_bytes = [], 0, 0
  yield from _render(waiting, rules)


def _render(
  rows: Sequence[tuple[Document | Messages, str, str, int]], rules: Rules
) -> Iterator[Document]:
  conversations = [r[0] for r in rows if not isinstance(r[0], Document)]
  results = iter(rules.render(conversations) if conversations else ())
  for row, name, where, _ in rows:
    if isinstance(row, Document):
      yield row
      continue
    result = next(results)
    if isinstance(result, str):
      reason = ' '.join(result.split())[:_MAX_REASON_CHARACTERS]
      raise DataError(f"{where} has 'messages' that can't be used: {reason}")
    if result.text:
      yield Document(name, result.text, result.marked, result.mark, True)


def _read_parquet(
  path: pathlib.Path, name: str, rules: Rules
) -> Iterator[Document]:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise DataError(
      f"{path}: parquet needs pyarrow; pip install 'seekax[data]'"
    ) from error
  field, row = rules.text_field, 0
  try:
    with pyarrow.parquet.ParquetFile(
      path, buffer_size=_PARQUET_BUFFER_BYTES
    ) as file:
      kinds = {entry.name: entry.type for entry in file.schema_arrow}
      if not _is_string(kinds.get(field)):
        raise DataError(
          f'{path} has no column {field!r} of strings; data.text_field '
          '(tokenize: --text_field) names another'
        )
      rows = _rows_at_a_time(file.metadata, path, rules)
      for batch in file.iter_batches(rows, columns=[field]):
        for value in batch.column(0):
          row += 1
          # Checked before it becomes a Python string.
          buffer = value.as_buffer()
          if buffer is not None and buffer.size > rules.max_document_bytes:
            raise _too_long(f'row {row} of {path}', rules)
          if buffer is not None and buffer.size:
            yield Document(f'{name}:{row}', value.as_py())
  except UnicodeDecodeError as error:
    raise DataError(f'{path} is not UTF-8 in row {row}') from error
  except pyarrow.ArrowException as error:
    raise DataError(f'{path} is no parquet file ({error})') from error


def _rows_at_a_time(metadata: Any, path: pathlib.Path, rules: Rules) -> int:
  """How many rows to read at once, so that they don't fill the memory.

  No row is larger than its group; with a dictionary many may be as large.

  Raises:
    DataError: the mean row is too long.
  """
  paths = [metadata.schema.column(n).path for n in range(metadata.num_columns)]
  column, largest = paths.index(rules.text_field), 1
  for number in range(metadata.num_row_groups):
    group = metadata.row_group(number)
    size = group.column(column).total_uncompressed_size
    largest = max(largest, size)
    if size > rules.max_document_bytes * max(group.num_rows, 1):
      raise _too_long(f'a row of group {number} of {path}', rules)
  rows = min(_PARQUET_ROWS, rules.max_document_bytes // largest)
  return max(rows, _FEWEST_PARQUET_ROWS)


def _is_string(kind: object) -> bool:
  return str(kind) in ('string', 'large_string', 'string_view')
