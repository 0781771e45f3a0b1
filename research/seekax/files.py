"""Files: what others wrote is read within limits, ours are written whole.

A file in a folder from elsewhere may be a pipe that never ends, a device, or
gigabytes of holes; a name in it may move the cursor of a terminal. Nothing is
read here before its kind and its size are known.
"""

import errno
import json
import os
import pathlib
import resource
import stat
from typing import Any, NoReturn

from seekax.configuration.errors import InputError

MB = 1_000_000
# Bytes that a file of a kind may have. The largest releases need far less:
# Kimi-K2's 139,000 tensors make an index of 13 MB, DeepSeek-V3's is 9 MB, and
# its header as one single file would have 14 MB.
LIMITS = {
  'config.json': 4 * MB,
  'run.json': 4 * MB,
  'summary.json': 16 * MB,
  'a manifest of SHA-256': 16 * MB,
  'metadata of a checkpoint': 64 * MB,
  'a safetensors header': 32 * MB,
  'a safetensors index': 32 * MB,
  'a metrics file': 256 * MB,
  'a text': 256 * MB,
  'token ids': 256 * MB,
  'a tokenizer': 256 * MB,
}
# JSON takes thirty times its size in memory where it is all brackets; Kimi-K2
# as one file would have 1,400,000 brackets and commas.
_MAX_JSON_PARTS = 3_000_000
_SYSTEM_FILES = ('.DS_Store', 'Thumbs.db', 'desktop.ini')
# What a message shows of a foreign word.
_SHOWN = 80
# What a message may have, and what its end keeps when it is cut: the advice.
_MAX_MESSAGE = 480
_END_OF_MESSAGE = 160

# What `json` reads of an object: of no known types until somebody has looked.
JsonObject = dict[str, Any]

# Multiplies every limit on files and on memory.
LIMIT_FACTOR = 'SEEKAX_LIMIT_FACTOR'


def left_by_system(name: str) -> bool:
  """Whether Finder or Explorer leave such a file in folders that they show."""
  return name in _SYSTEM_FILES or name.startswith('._')


def limit_factor() -> float:
  """What the user multiplies all limits by; 1 unless the variable is set.

  Raises:
    InputError: it is no number of 1 or more.
  """
  text = os.environ.get(LIMIT_FACTOR, '1')
  try:
    factor = float(text)
  except ValueError:
    factor = 0.0
  if not 1 <= factor < float('inf'):
    raise InputError(f'{LIMIT_FACTOR}={quoted(text)} is no number from 1 on')
  return factor


def printable(text: str) -> str:
  """The text on one line, with every control character spelled out."""
  if text.isprintable():
    return text
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def quoted(value: object, limit: int = _SHOWN) -> str:
  """A foreign word or value in quotes, on one line and cut, for a message."""
  if isinstance(value, str):
    cut = value[:limit]
    return repr(cut) + ('...' if len(value) > limit else '')
  try:
    # The beginning is enough, and all of it could be gigabytes.
    text = repr(value)
  except (ValueError, RecursionError):  # 10,000 digits; 1,000 brackets.
    text = f'a {type(value).__name__}'
  return text if len(text) <= limit else text[:limit] + '...'


def one_line(text: str) -> str:
  """A message as users see it: one line, no control characters, not long.

  What is cut is in the middle: the beginning says what, the end what to do.
  """
  text = printable(' '.join(text.split()))
  if len(text) <= _MAX_MESSAGE:
    return text
  start = _MAX_MESSAGE - _END_OF_MESSAGE - 5
  return f'{text[:start]} ... {text[-_END_OF_MESSAGE:]}'


def reason(error: Exception) -> str:
  """Why the system refused, in words; never empty."""
  number = getattr(error, 'errno', None)
  if number in (errno.EMFILE, errno.ENFILE):
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f'too many open files; raise the limit of {soft} with `ulimit -n`'
  if number == errno.ELOOP:
    return 'it is a link to itself'
  words = getattr(error, 'strerror', None) or str(error).strip()
  return one_line(words) or type(error).__name__


def open_regular(
  path: pathlib.Path | str, error: type[InputError] = InputError
) -> tuple[int, int]:
  """Opens a file for reading, without waiting for what is no file.

  Args:
    path: where it is; a link is followed.
    error: raised, with the path, if it can't be opened.

  Returns:
    (descriptor, size).
  """

  def refuse(why: str, cause: Exception | None = None) -> NoReturn:
    raise error(f'{path} can not be read: {why}') from cause

  try:
    # A pipe would keep a plain open waiting for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except (OSError, ValueError) as caught:
    refuse(reason(caught), caught)
  status = os.fstat(descriptor)
  if not stat.S_ISREG(status.st_mode):
    os.close(descriptor)
    refuse(f'it is {_kind(status.st_mode)}, not a file')
  return descriptor, status.st_size


def _kind(mode: int) -> str:
  for test, words in (
    (stat.S_ISDIR, 'a folder'),
    (stat.S_ISFIFO, 'a pipe'),
    (stat.S_ISSOCK, 'a socket'),
  ):
    if test(mode):
      return words
  return 'a device'


def check_size(
  path: pathlib.Path | str,
  size: int,
  kind: str,
  error: type[InputError] = InputError,
) -> None:
  """Refuses a file, or a part of one, that is larger than its kind may be.

  Args:
    path: named in the error.
    size: in bytes.
    kind: a key of LIMITS.
    error: raised if it is too large.
  """
  limit = int(LIMITS[kind] * limit_factor())
  if size > limit:
    raise error(
      f'{path} can not be read: {size:,} bytes are more than {kind} may have, '
      f'{limit:,}; if it is meant, {LIMIT_FACTOR}=10 allows ten times as many'
    )


def read_bounded(
  path: pathlib.Path | str, kind: str, error: type[InputError] = InputError
) -> bytes:
  """All bytes of a small file.

  Args:
    path: where it is.
    kind: a key of LIMITS.
    error: raised if it isn't there, isn't a file or is larger than its kind
      may be.
  """
  descriptor, size = open_regular(path, error)
  with open(descriptor, 'rb') as file:
    check_size(path, size, kind, error)
    try:
      data = file.read(size + 1)
    except OSError as caught:
      raise error(f'{path} can not be read: {reason(caught)}') from caught
  if len(data) > size:
    raise error(f'{path} can not be read: it grows meanwhile')
  return data


def parse_json(
  path: pathlib.Path | str,
  text: bytes,
  error: type[InputError] = InputError,
) -> Any:
  """Parses JSON in which no object has a key twice.

  Args:
    path: named in errors.
    text: UTF-8.
    error: raised if it is broken, too deep or too large, or if a key is there
      twice.
  """

  def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
      seen: set[str] = set()
      for name, _ in pairs:
        if name in seen:
          raise error(f'{path} lists {quoted(name)} twice')
        seen.add(name)
    return result

  parts = sum(text.count(mark) for mark in (b'[', b'{', b','))
  if parts > _MAX_JSON_PARTS * limit_factor():
    raise error(
      f'{path} can not be read: its JSON has {parts:,} parts, more than '
      f'{_MAX_JSON_PARTS:,}; if it is meant, {LIMIT_FACTOR}=10 allows ten '
      'times as many'
    )
  try:
    return json.loads(text.decode('utf-8'), object_pairs_hook=unique)
  except error:
    raise
  except RecursionError as caught:
    raise error(f'{path} holds no valid JSON: its brackets are too deep') from (
      caught
    )
  except ValueError as caught:
    raise error(f'{path} holds no valid JSON ({reason(caught)})') from caught


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file so that, also after a crash, it is complete or not there."""
  temporary = path.with_name(f'{path.name}.tmp-{os.getpid()}')
  try:
    with open(temporary, 'wb') as file:
      file.write(content.encode() if isinstance(content, str) else content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
