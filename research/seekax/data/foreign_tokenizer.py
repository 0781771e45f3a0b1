"""Tries an unknown tokenizer.json in a child process before it is used.

The library that reads it is compiled, and some files make it fail in ways that
Python can't catch: it panics, or takes all time and memory. A file that passes
here, with limits to both, is then loaded in this process. Each file is tried
once; the hashes of files that passed are kept in the user's cache.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import pathlib
import subprocess

from seekax.data import child
from seekax.data.child import limit
from seekax.data.reading_rules import DataError

# Wall-clock limit in s, and how many bytes of the file add another second.
_SECONDS, _BYTES_PER_SECOND = 6, 4 << 20
# Limit of the address space, and how much every byte of the file adds.
_MEMORY_BYTES, _MEMORY_PER_BYTE = 768 << 20, 24
# NFKC makes at most 18 characters of one, so sound normalizers stay below this.
_MOST_GROWTH = 64


def check(source: str, cache: pathlib.Path | None) -> None:
  """Raises DataError for a file that the library can't be trusted with.

  Args:
    source: the text of a tokenizer.json.
    cache: folder that marks the files found sound; None for no cache.

  Raises:
    DataError: it makes the library panic or take too much time or memory, or
      its normalizer can make a text much longer.
  """
  version = importlib.metadata.version('tokenizers')
  digest = hashlib.sha256(f'{version}\n{source}'.encode()).hexdigest()
  mark = cache / f'{digest}.sound' if cache else None
  if mark is not None and mark.is_file():
    return
  refuse_growth(source)
  problem = _try(source.encode('utf-8', 'surrogatepass'))
  if problem:
    raise DataError(
      f'the tokenizer {problem}; take the original file of its model'
    )
  if mark is not None:
    with contextlib.suppress(OSError):  # Without the mark it is tried again.
      mark.parent.mkdir(parents=True, exist_ok=True)
      mark.touch()


def refuse_growth(source: str) -> None:
  """Raises DataError if the normalizer could multiply a text's length."""
  try:
    normalizer = json.loads(source).get('normalizer')
  except (ValueError, RecursionError, AttributeError):
    return  # The reader refuses what is no JSON object.
  growth = _growth(normalizer)
  if growth > _MOST_GROWTH:
    raise DataError(
      f'the normalizer of the tokenizer may make {growth:.3g} characters of '
      'one; take the original file of its model'
    )


def _growth(normalizer: object) -> float:
  """The most characters that replacements and prefixes can make of one."""
  if not isinstance(normalizer, dict):
    return 1.0
  result = 1.0
  parts = normalizer.get('normalizers')
  for part in parts if isinstance(parts, list) else ():
    result *= _growth(part)
  content, pattern = normalizer.get('content'), normalizer.get('pattern')
  if isinstance(content, str):
    text = pattern.get('String') if isinstance(pattern, dict) else None
    result *= max(len(content) / max(len(text or ''), 1), 1)
  if isinstance(prefix := normalizer.get('prepend'), str):
    result *= 1 + len(prefix)
  return result


def _try(source: bytes) -> str:
  """Returns what a child process finds wrong; '' if nothing."""
  seconds = _SECONDS + len(source) // _BYTES_PER_SECOND
  memory = _MEMORY_BYTES + _MEMORY_PER_BYTE * len(source)
  folders = child.folders_of('tokenizers')
  try:
    process = child.run(
      [_serve],
      f'_serve({folders}, {memory}, {seconds})',
      source,
      seconds,
      # One thread: each would take address space of its own.
      {'TOKENIZERS_PARALLELISM': 'false', 'RAYON_NUM_THREADS': '1'},
    )
  except subprocess.TimeoutExpired:
    return f'takes longer than {seconds} s for a few words'
  except OSError as error:
    return f'can not be tried in a process ({error})'
  if process.returncode == 0:
    return ''
  if process.returncode == 3:
    return 'makes the library that reads it panic'
  return f'ends the process that reads it, with code {process.returncode}'


def _serve(folders, memory, seconds):
  """Runs in the child process, which holds nothing but this function.

  It exits with 0 if the file can be used or if the library refuses it with an
  error, which the parent then meets itself; with 3 after a panic.
  """
  import sys

  limit(memory, seconds)
  sys.path += folders
  import tokenizers

  # Unknown characters, bytes, long runs, combining marks, the empty text.
  probes = [
    '',
    ' ',
    'a',
    'The quick brown fox, 1234567 times.',
    'd\u00e9j\u00e0',
  ]
  probes += ['\u4e2d\u6587\U0001f389\u200d\u0301', '\x00\x01\x7f', '\n\t\r\n ']
  probes += [c * 300 for c in ' a0.\n\u4e2d'] + ['ab ' * 100, '\ufffd\u2028']
  probes += ['<|x|> </s> [UNK] \u2581 ## <0x41>']
  probes.append(''.join(map(chr, range(1, 0x300))))
  source = sys.stdin.buffer.read().decode('utf-8', 'surrogatepass')
  try:
    made = tokenizers.Tokenizer.from_str(source)
    for special in (False, True):
      made.encode_special_tokens = special
      for probe in probes:
        ids = made.encode_batch_fast([probe], add_special_tokens=False)[0].ids
        made.decode(ids, skip_special_tokens=not special)
  except Exception:
    return
  except BaseException:  # A panic is no Exception.
    sys.exit(3)
