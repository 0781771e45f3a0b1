"""Seeded ways to spoil a file: bits, lengths, and what JSON may hold."""

from collections.abc import Callable
import copy
import json
import random
from typing import Any

_TRICKS = '\x1b[2J\x1b]0;x\x07\r\n\x00\u202e'
_VALUES: tuple[Any, ...] = (
  None,
  True,
  False,
  0,
  -1,
  3,
  2**31 - 1,
  2 * 10**9,
  2**63,
  10**30,
  1e308,
  0.5,
  float('nan'),
  float('inf'),
  '',
  'x',
  'x' * 5000,
  '../../etc/passwd',
  '/dev/zero',
  _TRICKS,
  _TRICKS * 500,
  [],
  {},
  [[]],
  [1, 'x', None],
  {'a': {'b': []}},
  {_TRICKS: _TRICKS},
)
_DEEP = '#deep#'  # Becomes thousands of brackets in the text.


def spoil_bytes(data: bytes, draw: random.Random) -> bytes:
  """Flips, cuts, repeats or overwrites a part."""
  if not data:
    return bytes(draw.randbytes(draw.choice((1, 10, 1000))))
  at = draw.randrange(len(data))
  end = min(at + draw.choice((1, 4, 16, 100, 4096)), len(data))
  ways: tuple[Callable[[], bytes], ...] = (
    lambda: _flipped(data, draw, 1),
    lambda: _flipped(data, draw, 1),
    lambda: _flipped(data, draw, 8),
    lambda: data[:at],
    lambda: data[at:],
    lambda: data[:end] + data[at:],
    lambda: data[:at] + data[end:],
    lambda: data[:at] + bytes(end - at) + data[end:],
    lambda: data[:at] + b'\xff' * (end - at) + data[end:],
    lambda: data[:at] + draw.randbytes(end - at) + data[end:],
    lambda: data[:at] + _TRICKS.encode() * 300 + data[at:],
    lambda: data + data,
    lambda: b'',
  )
  return draw.choice(ways)()


def _flipped(data: bytes, draw: random.Random, count: int) -> bytes:
  flipped = bytearray(data)
  for _ in range(count):
    flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
  return bytes(flipped)


def spoil_json(text: bytes, draw: random.Random) -> bytes:
  """Changes, deletes, renames or doubles some values of a JSON text."""
  content = json.loads(text)
  for _ in range(draw.choice((1, 1, 1, 2, 4))):
    content = _spoil_value(content, draw)
  spoilt = json.dumps(content)
  spoilt = spoilt.replace(f'"{_DEEP}"', '[' * 9000 + ']' * 9000)
  if draw.random() < 0.1 and '": ' in spoilt:
    # The first key twice, which no Python object can say.
    end = spoilt.index('": ')
    start = spoilt.rindex('"', 0, end)
    pair = spoilt[start:end] + '": 0, '
    spoilt = spoilt[:start] + pair + spoilt[start:]
  return spoilt.encode('utf-8', 'surrogatepass')


def _spoil_value(content: Any, draw: random.Random) -> Any:
  """Goes down to some place and spoils that."""
  keys = list(content) if isinstance(content, dict) else None
  if isinstance(content, list):
    keys = list(range(len(content)))
  if not keys or draw.random() < 0.1:
    return _another(content, draw)
  key = draw.choice(keys)
  if draw.random() < 0.85 and isinstance(content[key], (dict, list)):
    content[key] = _spoil_value(content[key], draw)
    return content
  way = draw.randrange(6)
  if way == 0:
    del content[key]
  elif way == 1 and isinstance(content, dict):
    content[draw.choice((_TRICKS, 'x' * 5000, f'{key}x', ''))] = content.pop(
      key
    )
  elif way == 2 and isinstance(content, list):
    content += content
  elif way == 3:
    content[key] = [content[key]]
  else:
    content[key] = _another(content[key], draw)
  return content


def _another(value: Any, draw: random.Random) -> Any:
  if type(value) in (int, float) and draw.random() < 0.5:
    return draw.choice((-value, value + 1, value * 1000, str(value), 0))
  if draw.random() < 0.05:
    return _DEEP
  return copy.deepcopy(draw.choice(_VALUES))  # It may be spoilt further.
