"""Reads `data.source`: the sources that it names and their text files."""

from collections.abc import Iterator, Sequence
import dataclasses
import fnmatch
import hashlib
import logging
import math
import os
import pathlib
import re
import sysconfig

from seekax.configuration.config import Config
from seekax.data import formats, own_output, reading_rules
from seekax.data.reading_rules import DataError, DEFAULT_RULES, Document, Rules

_logger = logging.getLogger(__name__)

STDLIB = 'stdlib'
STDLIB_LICENCE = 'PSF-2.0 (Python Software Foundation License)'
# Files that mark a folder of tokens, and an unfinished one.
TOKENS_MANIFEST, TOKENS_PLAN = 'manifest.json', 'plan.json'

# Python leaves these beside any source that was run.
_SKIPPED = frozenset(('__pycache__',))
# Tests, third-party packages, and tables that are hardly text.
_STDLIB_SKIPPED = _SKIPPED.union(
  ('site-packages', 'dist-packages', 'test', 'idlelib', 'lib2to3')
  + ('pydoc_data', 'encodings')
)
_NAMED = 3  # Number of skipped files of a kind that the log names.
_WEIGHTED = re.compile(r'\s*([0-9.]+(?:e-?[0-9]+)?)\s*\*\s*(.+)', re.DOTALL)


class PassedOver:
  """Collects what a reading leaves out, by reason, for the log."""

  def __init__(self):
    self.first_problem = ''
    self._names = {}
    self._conversations = 0

  def add(self, reason: str, name: str, problem: str = '') -> None:
    """Notes a file or folder; `problem` is the message for a source of one."""
    self._names.setdefault(reason, []).append(name)
    self.first_problem = self.first_problem or problem

  def add_conversation(self) -> None:
    """Counts a row that was rendered."""
    self._conversations += 1

  def say(self, source: object, rules: Rules) -> None:
    """Logs one line per reason."""
    for reason, names in self._names.items():
      named = ', '.join(ascii(name) for name in names[:_NAMED])
      more = ', ...' if len(names) > _NAMED else ''
      _logger.warning(
        '%s: passed over %s (%d): %s%s', source, reason, len(names), named, more
      )
    if self._conversations:
      _logger.warning(
        "%s: %d rows hold 'messages'; they are rendered %s",
        source,
        self._conversations,
        rules.rendering,
      )


@dataclasses.dataclass(frozen=True)
class Source:
  """One of the sources that a mixture takes tokens from.

  Attributes:
    weight: its share of the tokens; all weights add up to 1.
    paths: 'stdlib', files and folders.
    prefixes: for each path, what the names of its documents begin with.
    has_weight: whether the text gave it a weight.
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
    DataError: a path is missing, two have the same name, or a weight isn't a
      positive number.
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
  weights = [_weight(match[1], text) for match in matches if match]
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
  """Returns each path's last name; raises if two are the same."""
  if len(paths) == 1:
    return ('',)
  names = [os.path.basename(os.path.abspath(path)) for path in paths]
  for name in names:
    if names.count(name) > 1:
      raise DataError(
        f'data.source has two of the name {name!r}, so that their documents '
        'could not be told apart; rename one'
      )
  # A single file's document is named after the file already.
  return tuple(
    name + '/' if path == STDLIB or os.path.isdir(path) else ''
    for name, path in zip(names, paths, strict=True)
  )


def absolute_paths(config: Config, folder: str) -> Config:
  """A copy of a run's config whose paths hold in any current folder.

  Args:
    config: a run's config; a leading ~ means the user's home.
    folder: the folder that its relative paths start from.
  """
  return dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data,
      source=absolute(config.data.source, folder),
      tokenizer=_absolute(config.data.tokenizer, folder),
    ),
    train=dataclasses.replace(
      config.train,
      init_from=_absolute(config.train.init_from, folder),
      compilation_cache=_absolute(config.train.compilation_cache, folder),
    ),
  )


def absolute(text: str, folder: str) -> str:
  """`data.source` with absolute paths; see `parse`.

  It stays as it is where the folder's own name has a comma, at which `parse`
  would split it.
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
  """An absolute path; special words and URLs stay as they are."""
  if path in ('', STDLIB, 'auto') or '://' in path:
    return path
  return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))


def is_tokens(path: str) -> bool:
  """Whether a path is a folder of tokens and not of text.

  Raises:
    DataError: seekax tokenize hasn't finished the folder.
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
    DataError: as `read_text`; or the source is a mixture, or tokens.
  """
  parsed = parse(source)
  if len(parsed) > 1 or any(map(is_tokens, parsed[0].paths)):
    raise DataError(f'{source!r} is not a single source of text')
  return read_text(parsed[0])


def read_text(source: Source, rules: Rules = DEFAULT_RULES) -> list[Document]:
  """Reads the texts of a source, sorted by name; empty ones are left out.

  Folders of tokens are skipped.

  Returns:
    Documents. A name is the path relative to the source (for a single file the
    file's name), followed by `:line` or `:row` where a file holds several.

  Raises:
    DataError: a file is unreadable or not what its name says, or there is
      neither text nor a folder of tokens.
  """
  passed = PassedOver()
  documents = list(stream(source, rules, passed))
  if not documents and not any(map(is_tokens, source.paths)):
    raise no_text(f"data.source='{source}'", passed)
  return sorted(documents, key=lambda document: document.name)


def no_text(source: str, passed: PassedOver) -> DataError:
  """The error for a source in which no text was found."""
  if passed.first_problem:
    return DataError(f'{source} holds no text: {passed.first_problem}')
  return DataError(
    f'{source} holds no text; give a file or folder with text in it (hidden '
    'files are not read, nor what include and exclude leave out)'
  )


def stream(
  source: Source, rules: Rules = DEFAULT_RULES, passed: PassedOver | None = None
) -> Iterator[Document]:
  """Yields the texts of a source, file by file, in the order of their names.

  Files that aren't text are skipped and logged at the end.

  Args:
    source: what to read.
    rules: how to read it.
    passed: collects what is skipped.
  """
  passed = PassedOver() if passed is None else passed
  found = False
  for path, prefix in zip(source.paths, source.prefixes, strict=True):
    if is_tokens(path):
      found = True
      continue
    for file, name in find_files(path, rules, passed):
      try:
        for document in formats.read_file(file, prefix + name, rules):
          if document.from_messages:
            passed.add_conversation()
          found = True
          yield document
      except reading_rules.NotTextError as error:
        if path != STDLIB:  # A few of its files declare another encoding.
          passed.add('files that are not text', prefix + name, str(error))
  if found:  # Otherwise the caller raises an error.
    passed.say(source, rules)


def find_files(
  path: str, rules: Rules = DEFAULT_RULES, passed: PassedOver | None = None
) -> list[tuple[pathlib.Path, str]]:
  """The files of a path with their names relative to it, sorted by name.

  Raises:
    DataError: a folder can't be read, or holds what seekax wrote.
  """
  passed = PassedOver() if passed is None else passed
  root = pathlib.Path(path)
  if path == STDLIB:
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    walked = _walk(root, _STDLIB_SKIPPED, passed)
    files = [p for p in walked if p.suffix == '.py']
  elif root.is_dir():
    if kind := own_output.kind(root):
      raise DataError(
        f'{path} is {kind}, which holds no text to train on; give the folder '
        'of the text'
      )
    files = list(_walk(root, _SKIPPED, passed))
  else:
    files, root = [root], root.parent
  named = [(file, file.relative_to(root).as_posix()) for file in files]
  tokenizer = own_output.tokenizer_files(rules.tokenizer)
  result = []
  for file, name in sorted(named, key=lambda entry: entry[1]):
    if tokenizer and os.path.realpath(file) in tokenizer:
      passed.add('files of the tokenizer', name)
    elif _is_wanted(name, rules):
      result.append((file, name))
  return result


def _is_wanted(name: str, rules: Rules) -> bool:
  """Whether the patterns include a file; `*` also matches slashes."""

  def matches(patterns: str) -> bool:
    return any(
      fnmatch.fnmatchcase(part, pattern.strip())
      for pattern in patterns.split(',')
      for part in (name, name.rpartition('/')[2])
    )

  return (not rules.include or matches(rules.include)) and not matches(
    rules.exclude
  )


def sha256(text: str) -> str:
  """Returns the hexadecimal SHA-256 of a text or a name."""
  # Python puts surrogates into a file name that isn't UTF-8.
  return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()


def _walk(
  top: pathlib.Path, skipped: frozenset[str], passed: PassedOver
) -> Iterator[pathlib.Path]:
  """Yields the files below a folder: none hidden, none in a skipped folder.

  Links to other folders are followed. A link into a folder that is read anyway,
  or to one around it, is not: it would give documents twice, or without end.
  Folders that seekax wrote are skipped.
  """
  read = [os.path.realpath(top)]
  waiting = [top]
  while waiting:
    folder = waiting.pop()
    folders = []
    for entry in _entries(folder):
      path, name = folder / entry.name, entry.name
      if name.startswith('.') or (entry.is_dir() and name in skipped):
        continue
      if not entry.is_dir():
        yield path
        continue
      label, real = path.relative_to(top).as_posix(), os.path.realpath(path)
      if entry.is_symlink():
        if any(_is_inside(real, r) or _is_inside(r, real) for r in read):
          passed.add('links to folders that are read anyway', label)
          continue
        read.append(real)
      if kind := own_output.kind(path):
        passed.add(f'what seekax writes, {kind}', label)
      else:
        folders.append(path)
    waiting += reversed(folders)


def _entries(folder: pathlib.Path) -> list[os.DirEntry]:
  try:
    with os.scandir(folder) as entries:
      return sorted(entries, key=lambda entry: entry.name)
  except OSError as error:
    raise formats.unreadable(error.filename, error) from error


def _is_inside(path: str, folder: str) -> bool:
  return path == folder or path.startswith(folder.rstrip('/') + '/')
