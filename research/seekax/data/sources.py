"""Documents: where the text comes from, and which part of it is held out."""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import sysconfig

from seekax.config import InputError

STDLIB_LICENCE = 'PSF-2.0 (Python Software Foundation License)'

# What Python leaves beside any source that was run.
_SKIPPED = frozenset(('__pycache__',))
# Tests, other people's packages, and tables that are hardly text.
_STDLIB_SKIPPED = _SKIPPED.union(
  ('site-packages', 'dist-packages', 'test', 'idlelib', 'lib2to3')
  + ('pydoc_data', 'encodings')
)


class DataError(InputError):
  """Data that cannot work; the message says what, where, the fix."""


@dataclasses.dataclass(frozen=True)
class Document:
  """A text and its name, which is unique and the same on every machine."""

  name: str
  text: str


def read_documents(source: str) -> list[Document]:
  """Reads a source into documents, sorted by name; empty ones are left out.

  Args:
    source: 'stdlib' (the `*.py` files of the running Python's own library), a
      text file, a `.jsonl` file (an object with a string `text` on each line)
      or a folder of any of these, read recursively without hidden files.

  Returns:
    At least one document. A name is the path relative to the source (for a
    single file its name), followed in `.jsonl` files by `:line`.

  Raises:
    DataError: the source is missing, unreadable, empty, not UTF-8 or not JSON.
  """
  if source == 'stdlib':
    documents = _read_stdlib()
  elif not source or not os.path.exists(source):
    raise DataError(
      f"data.source={source!r} does not exist; give 'stdlib', a text file, a "
      '.jsonl file or a folder of these'
    )
  else:
    root = pathlib.Path(source)
    folder = root if root.is_dir() else root.parent
    paths = _walk(root) if root.is_dir() else [root]
    documents = [
      document
      for path in paths
      for document in _read_file(path, path.relative_to(folder).as_posix())
    ]
  if not documents:
    raise DataError(
      f'data.source={source!r} holds no text; give a file or folder with text '
      'in it (hidden files are not read)'
    )
  return sorted(documents, key=lambda document: document.name)


def split(
  documents: Sequence[Document], heldout_fraction: float
) -> tuple[list[Document], list[Document]]:
  """Divides documents into a training and a held-out part, both non-empty.

  A document is held out when the SHA-256 of its name says so, so that adding
  documents never moves another one across. A single document is cut instead:
  the last `heldout_fraction` of its lines (at least one) is held out, and the
  two parts are named `<name>#train` and `<name>#heldout`.

  Raises:
    DataError: one of the two parts would be empty.
  """
  if len(documents) == 1:
    return _split_lines(documents[0], heldout_fraction)
  train, heldout = [], []
  for document in documents:
    held = _name_fraction(document.name) < heldout_fraction
    (heldout if held else train).append(document)
  if not heldout:
    least = min((_name_fraction(d.name) for d in documents), default=0.0)
    raise DataError(
      f'data.heldout_fraction={heldout_fraction} holds out none of '
      f'{len(documents)} documents; raise it to {math.ceil(least * 1e4) / 1e4} '
      'or give more documents'
    )
  if not train:
    most = max(_name_fraction(d.name) for d in documents)
    raise DataError(
      f'data.heldout_fraction={heldout_fraction} holds out all '
      f'{len(documents)} documents; lower it to {math.floor(most * 1e4) / 1e4} '
      'or give more documents'
    )
  return train, heldout


def sha256(text: str) -> str:
  """Returns the hexadecimal SHA-256 of a text or a name."""
  # A file name that isn't UTF-8 reaches us with surrogates in it.
  return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()


def _name_fraction(name: str) -> float:
  return int(sha256(name)[:16], 16) / 2**64


def _split_lines(
  document: Document, heldout_fraction: float
) -> tuple[list[Document], list[Document]]:
  lines = document.text.splitlines(keepends=True)
  num_heldout = math.ceil(len(lines) * heldout_fraction)
  if num_heldout >= len(lines):
    raise DataError(
      f'{document.name} is the only document and has {len(lines)} line(s), of '
      f'which data.heldout_fraction={heldout_fraction} holds out '
      f'{num_heldout}; give more lines or documents, or lower the fraction'
    )
  parts = {'train': lines[:-num_heldout], 'heldout': lines[-num_heldout:]}
  train, heldout = (
    [Document(f'{document.name}#{part}', ''.join(part_lines))]
    for part, part_lines in parts.items()
  )
  return train, heldout


def _read_stdlib() -> list[Document]:
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  documents = []
  for path in _walk(root, _STDLIB_SKIPPED):
    if path.suffix != '.py':
      continue
    try:
      documents += _read_file(path, path.relative_to(root).as_posix())
    except _NotUtf8Error:
      continue  # A few files declare another coding.
  return documents


def _walk(
  root: pathlib.Path, skipped: frozenset[str] = _SKIPPED
) -> Iterator[pathlib.Path]:
  """Yields the files below a folder: none hidden, none in a skipped folder."""

  def fail(error: OSError):  # os.walk would pass over the folder in silence.
    raise _unreadable(error.filename, error) from error

  for folder, folders, files in os.walk(root, onerror=fail):
    folders[:] = [
      name
      for name in folders
      if not name.startswith('.') and name not in skipped
    ]
    for name in files:
      if not name.startswith('.'):
        yield pathlib.Path(folder, name)


def _read_file(path: pathlib.Path, name: str) -> list[Document]:
  if not path.is_file():  # A pipe would block; a dangling link has no text.
    raise DataError(f'{path} is not a regular file; remove it from the source')
  try:
    content = path.read_bytes()
  except OSError as error:
    raise _unreadable(path, error) from error
  try:
    text = content.decode('utf-8')
  except UnicodeDecodeError as error:
    raise _NotUtf8Error(
      f'{path} is not UTF-8 at byte {error.start}; convert it to UTF-8 or '
      'remove it from the source'
    ) from error
  if path.suffix == '.jsonl':
    return _read_lines(text, path, name)
  return [Document(name, text)] if text else []


def _read_lines(text: str, path: pathlib.Path, name: str) -> list[Document]:
  documents = []
  # Not splitlines(): JSON strings may hold U+2028 and its kin unescaped.
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    document_text = _parse_line(line, f'{path}:{number}')
    if document_text:
      documents.append(Document(f'{name}:{number}', document_text))
  return documents


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


class _NotUtf8Error(DataError):
  pass


def _unreadable(path, error: OSError) -> DataError:
  return DataError(
    f'cannot read {path} ({error.strerror}); check its permissions'
  )
