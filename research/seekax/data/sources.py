"""Sources: what `data.source` names, and the files of text in it."""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import math
import os
import pathlib
import re
import sysconfig

from seekax.config import Config
from seekax.data import formats
from seekax.data.formats import DataError, Document

STDLIB = 'stdlib'
STDLIB_LICENCE = 'PSF-2.0 (Python Software Foundation License)'
# Of a folder that seekax tokenize wrote, and of one that it is writing.
TOKENS_MANIFEST, TOKENS_PLAN = 'manifest.json', 'plan.json'

# What Python leaves beside any source that was run.
_SKIPPED = frozenset(('__pycache__',))
# Tests, other people's packages, and tables that are hardly text.
_STDLIB_SKIPPED = _SKIPPED.union(
  ('site-packages', 'dist-packages', 'test', 'idlelib', 'lib2to3')
  + ('pydoc_data', 'encodings')
)
_WEIGHTED = re.compile(r'\s*([0-9.]+(?:e-?[0-9]+)?)\s*\*\s*(.+)', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Source:
  """One of the sources that a mixture takes its tokens from.

  Attributes:
    weight: its share of the tokens; all weights together are 1.
    paths: 'stdlib', files and folders.
    prefixes: of the names of each path's documents.
    has_weight: whether a weight was written before it.
  """

  weight: float
  paths: tuple[str, ...]
  prefixes: tuple[str, ...]
  has_weight: bool = False

  def __str__(self) -> str:
    return ','.join(self.paths)


def parse(text: str) -> list[Source]:
  """Reads `data.source`: a path, 'a,b' (one source) or '0.7*a,0.3*b'.

  Raises:
    DataError: a path is missing, two have the same name, or a weight is none.
  """
  if text == STDLIB or os.path.exists(text):  # A path may have a comma.
    return [Source(1.0, (text,), ('',))]
  items = [item.strip() for item in text.split(',')]
  matches = [_WEIGHTED.fullmatch(item) for item in items]
  if any(matches) and not all(matches):
    raise DataError(
      f'data.source={text!r} gives a weight to some and not to all; write '
      "'0.7*a,0.3*b' or 'a,b'"
    )
  paths = [
    m[2].strip() if m else i for m, i in zip(matches, items, strict=True)
  ]
  for path in paths:
    if path != STDLIB and not (path and os.path.exists(path)):
      raise DataError(
        f"data.source={path!r} does not exist; give 'stdlib', a text, .jsonl, "
        '.jsonl.gz or .parquet file, a folder of these or one of tokens, or '
        "several as 'a,b' or '0.7*a,0.3*b'"
      )
  prefixes = _prefixes(paths)
  if not any(matches):
    return [Source(1.0, tuple(paths), prefixes)]
  weights = [_weight(match[1], text) for match in matches]
  return [
    Source(weight / math.fsum(weights), (path,), (prefix,), has_weight=True)
    for weight, path, prefix in zip(weights, paths, prefixes, strict=True)
  ]


def _weight(word: str, text: str) -> float:
  try:
    weight = float(word)
  except ValueError:
    weight = 0.0
  if not 0 < weight < math.inf:
    raise DataError(f'data.source={text!r}: the weight {word!r} is not above 0')
  return weight


def _prefixes(paths: Sequence[str]) -> tuple[str, ...]:
  """Each path's last name, as long as no two are the same."""
  if len(paths) == 1:
    return ('',)
  names = [os.path.basename(os.path.abspath(path)) for path in paths]
  for name in names:
    if names.count(name) > 1:
      raise DataError(
        f'data.source has two of the name {name!r}, so that their documents '
        'could not be told apart; rename one'
      )
  # A single file's documents are called by its name already.
  return tuple(
    name + '/' if path == STDLIB or os.path.isdir(path) else ''
    for name, path in zip(names, paths, strict=True)
  )


def absolute_paths(config: Config, folder: str) -> Config:
  """A run's config whose paths mean the same from any folder.

  Args:
    config: of a run; a leading ~ is the user's home.
    folder: what its relative paths are relative to.
  """
  train = {
    key: _absolute(getattr(config.train, key), folder)
    for key in ('init_from', 'compilation_cache')
  }
  data = {
    'source': absolute(config.data.source, folder),
    'tokenizer': _absolute(config.data.tokenizer, folder),
  }
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, **data),
    train=dataclasses.replace(config.train, **train),
  )


def absolute(text: str, folder: str) -> str:
  """`data.source` with absolute paths; see `parse`.

  It stays as it is where the folder's own name has a comma, at which `parse`
  would cut it.
  """
  whole = _absolute(text, folder)
  if text == STDLIB or os.path.exists(whole):
    return whole
  if ',' in folder or ',' in os.path.expanduser('~'):
    return text
  items = []
  for item in text.split(','):
    match = _WEIGHTED.fullmatch(item)
    weight, path = (f'{match[1]}*', match[2]) if match else ('', item)
    path = path.strip()
    items.append(weight + (_absolute(path, folder) if path else ''))
  return ','.join(items)


def _absolute(path: str, folder: str) -> str:
  """An absolute path; words that are no paths stay."""
  if path in ('', STDLIB, 'auto') or '://' in path:
    return path
  return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))


def is_tokens(path: str) -> bool:
  """Whether this is a folder of tokens, and not of text.

  Raises:
    DataError: it is one that seekax tokenize hasn't finished.
  """
  folder = pathlib.Path(path)
  if not any(folder.glob('*.array_record')):
    return False
  whole = (folder / TOKENS_MANIFEST).is_file()
  if not whole and (folder / TOKENS_PLAN).is_file():
    raise DataError(
      f'{path} is unfinished; give seekax tokenize the same command again'
    )
  return whole


def read_documents(source: str) -> list[Document]:
  """Reads a source of text without weights; see `parse` and `read_paths`.

  Raises:
    DataError: see there; or the source is a mixture, or tokens.
  """
  parsed = parse(source)
  if len(parsed) > 1 or any(map(is_tokens, parsed[0].paths)):
    raise DataError(f'{source!r} is not a single source of text')
  return read_text(parsed[0])


def read_text(source: Source) -> list[Document]:
  """Reads the texts of a source, sorted by name; empty ones are left out.

  Folders of tokens are passed over.

  Returns:
    Documents. A name is the path relative to the source (for a single file its
    name), followed by `:line` or `:row` where a file holds many.

  Raises:
    DataError: a file is unreadable or not what its name says, or there is
      neither text nor a folder of tokens.
  """
  documents = list(stream(source))
  if not documents and not any(map(is_tokens, source.paths)):
    raise DataError(
      f"data.source='{source}' holds no text; give a file or folder with text "
      'in it (hidden files are not read)'
    )
  return sorted(documents, key=lambda document: document.name)


def stream(source: Source) -> Iterator[Document]:
  """Yields the texts of a source, file by file in the order of their names."""
  for path, prefix in zip(source.paths, source.prefixes, strict=True):
    if is_tokens(path):
      continue
    for file, name in find_files(path):
      try:
        yield from formats.read_file(file, prefix + name)
      except formats.NotUtf8Error:
        if path != STDLIB:  # A few of its files declare another coding.
          raise


def find_files(path: str) -> list[tuple[pathlib.Path, str]]:
  """The files of a path, with their names relative to it, sorted by these."""
  if path == STDLIB:
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    files = [p for p in _walk(root, _STDLIB_SKIPPED) if p.suffix == '.py']
  else:
    root = pathlib.Path(path)
    files = list(_walk(root)) if root.is_dir() else [root]
    root = root if root.is_dir() else root.parent
  named = [(file, file.relative_to(root).as_posix()) for file in files]
  return sorted(named, key=lambda entry: entry[1])


def sha256(text: str) -> str:
  """Returns the hexadecimal SHA-256 of a text or a name."""
  # A file name that isn't UTF-8 reaches us with surrogates in it.
  return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()


def _walk(
  root: pathlib.Path, skipped: frozenset[str] = _SKIPPED
) -> Iterator[pathlib.Path]:
  """Yields the files below a folder: none hidden, none in a skipped folder."""

  def fail(error: OSError):  # os.walk would pass over the folder in silence.
    raise formats.unreadable(error.filename, error) from error

  for folder, folders, files in os.walk(root, onerror=fail):
    folders[:] = [
      name
      for name in folders
      if not name.startswith('.') and name not in skipped
    ]
    for name in files:
      if not name.startswith('.'):
        yield pathlib.Path(folder, name)
