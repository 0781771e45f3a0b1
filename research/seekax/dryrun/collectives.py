"""Reads the collectives of a partitioned program from its HLO text.

The text is taken after partitioning and before the backend's own passes, so
that dtypes are the program's: XLA on a CPU would turn bfloat16 into float32.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

import numpy as np

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_WIDTHS = {'pred': 1, 'bf16': 2}
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:body|to_apply|calls)=%?([\w.-]+)')
_BRANCHES = re.compile(
  r'branch_computations=\{([^}]*)\}'
  r'|true_computation=([^\s,]+), false_computation=([^\s,]+)'
)
_WHILE = re.compile(r'condition=%?([\w.-]+), body=%?([\w.-]+)')
_OPERATION = re.compile(
  rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\(([^)]*)\)(.*)'
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """A step's collectives of one kind over one set of mesh axes.

  Attributes:
    kind: name in HLO.
    axis: mesh axes, joined by '+'.
    count: operations per step. Loops that stop by their data, such as the
      exchange's further rounds, count as if they didn't run. In a
      conditional the branch that sends most counts: no device sends more.
    bytes: bytes that a device sends per step if collectives run as rings: an
      array made of n devices' parts costs (n - 1) / n of its size, all-reduce
      twice that.
  """

  kind: str
  axis: str
  count: int
  bytes: float


def read(
  text: str, sizes: dict[str, int], share_taken: float = 1.0
) -> list[Collective]:
  """Sums up a program's collectives, the largest first.

  Args:
    text: an HLO module.
    sizes: size of each mesh axis, in the order in which devices are numbered.
    share_taken: how often a device that meets a conditional takes a branch
      that isn't empty, from 0 to 1.

  Raises:
    ValueError: a collective's devices can't be read.
  """
  bodies = _computations(text)

  @functools.cache
  def total(name: str) -> _Total:
    found: _Total = {}
    for line in bodies.get(name, []):
      _add(found, _of_line(line, sizes), 1)
      for called, times in _calls(line, bodies):
        _add(found, total(called), times)
      branches = _BRANCHES.search(line)
      if branches:
        names = ','.join(filter(None, branches.groups())).split(',')
        each = [total(name.strip().lstrip('%')) for name in names]
        _add(found, max(each, key=_all_bytes), share_taken)
    return found

  rows = [
    Collective(*key, round(count), sent)
    for key, (count, sent) in total('').items()
    if count
  ]
  return sorted(rows, key=lambda row: -row.bytes)


# Maps (kind, axes) to (operations, bytes).
_Total = dict[tuple[str, str], tuple[float, float]]


def _add(found: _Total, more: _Total, times: float) -> None:
  for key, (count, sent) in more.items():
    counts, bytes_sent = found.get(key, (0.0, 0.0))
    found[key] = counts + times * count, bytes_sent + times * sent


def _all_bytes(found: _Total) -> float:
  return sum(sent for _, sent in found.values())


def _of_line(line: str, sizes: dict[str, int]) -> _Total:
  """The collective in a line, if there is one."""
  match = _OPERATION.search(line)
  if match is None:
    return {}
  result, kind, _, rest = match.groups()
  group = _group(rest)
  if len(group) == 1:
    return {}
  sent = _sent(kind, _bytes(result), len(group))
  return {(kind, _axis(group, sizes)): (1.0, sent)}


def _computations(text: str) -> dict[str, list[str]]:
  """The lines of every computation; the entry's name is ''."""
  bodies: dict[str, list[str]] = {}
  lines: list[str] = []
  for line in text.splitlines():
    start = _COMPUTATION.match(line)
    if start:
      lines = bodies.setdefault('' if start[1] else start[2], [])
    elif line.startswith('}'):
      lines = []
    else:
      lines.append(line)
  return bodies


def _calls(line: str, bodies) -> Iterator[tuple[str, int]]:
  """The computations that a line runs, except branches, and how often."""
  loop = _WHILE.search(line)
  if loop:
    yield loop[2], _trip_count(bodies.get(loop[1], []))
    return
  for called in _CALLED.findall(line):
    yield called, 1


def _trip_count(condition: list[str]) -> int:
  """Number of rounds of a loop from 0 to a constant; 0 for other loops."""
  root = next((line for line in condition if 'ROOT' in line), '')
  if 'direction=LT' not in root:
    return 0
  constants, copied = {}, {}
  for line in condition:
    match = re.search(r'%?([\w.-]+) = s32\[\] constant\((\d+)\)', line)
    if match:
      constants[match[1]] = int(match[2])
    match = re.search(r'%?([\w.-]+) = s32\[\] copy\(%?([\w.-]+)\)', line)
    if match:
      copied[match[1]] = match[2]
  operands = re.findall(r'%([\w.-]+)', root.split('compare(')[1].split(')')[0])
  bound = operands[-1] if operands else ''
  while bound in copied:
    bound = copied[bound]
  return constants.get(bound, 0)


def _group(rest: str) -> list[int]:
  """The devices of the first group; for a permutation, its first real pair."""
  match = re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? *\{([^}]*)\}',
    rest,
  )
  if match:
    axes = [part.split('=') for part in match[1].split(',')]
    shape = [int(size) for _, size in axes]
    split = re.findall(r"'([^']+)'", match[3])
    names = [name.strip().strip("'") for name, _ in axes]
    ids = _device_ids(match[2], shape)
    index = tuple(slice(None) if name in split else 0 for name in names)
    return ids[index].reshape(-1).tolist()
  match = re.search(
    r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest
  )
  if match:
    shape = [int(size) for size in match[3].split(',')]
    ids = np.arange(math.prod(shape)).reshape(shape)
    if match[4]:
      ids = ids.transpose([int(axis) for axis in match[4].split(',')])
    return ids.reshape(int(match[1]), int(match[2]))[0].tolist()
  match = re.search(r'source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}', rest)
  if match:
    pairs = re.findall(r'\{(\d+),(\d+)\}', match[1])
    # A pair of a device with itself sends nothing.
    sent = [[int(a), int(b)] for a, b in pairs if a != b]
    return sent[0] if sent else [int(pairs[0][0])]
  match = re.search(r'replica_groups=\{\{([\d,]+)\}', rest)
  if match:
    return [int(device) for device in match[1].split(',')]
  raise ValueError(
    f'the devices of a collective are not readable: {rest[:200]}'
  )


def _device_ids(order: str | None, shape: list[int]) -> np.ndarray:
  """A mesh's device numbers, which may be in another order than its axes."""
  ids = np.arange(math.prod(shape))
  if order:
    match = re.match(r'\[([\d,]+)\](?:T\(([\d,]+)\))?$', order)
    if match is None:
      raise ValueError(f'the order of devices is not readable: {order}')
    ids = ids.reshape([int(size) for size in match[1].split(',')])
    if match[2]:
      ids = ids.transpose([int(axis) for axis in match[2].split(',')])
  return ids.reshape(shape)


def _axis(group: list[int], sizes: dict[str, int]) -> str:
  """The mesh axes along which the devices of a group differ."""
  places = np.unravel_index(group, tuple(sizes.values()))
  differ = [
    axis
    for axis, place in zip(sizes, places, strict=True)
    if len(set(place.tolist())) > 1
  ]
  return '+'.join(differ)


def _bytes(shapes: str) -> int:
  """Number of bytes of a result, which may be a tuple."""
  total = 0
  for kind, dims in _SHAPE.findall(shapes):
    width = _WIDTHS.get(kind) or _bits(kind) // 8
    total += width * math.prod(int(d) for d in dims.split(',') if d)
  return total


def _bits(kind: str) -> int:
  match = re.search(r'\d+', kind)
  return int(match[0]) if match else 0


def _sent(kind: str, result: int, ranks: int) -> float:
  share = (ranks - 1) / ranks
  if kind == 'all-reduce':
    return 2 * share * result
  if kind == 'reduce-scatter':
    return (ranks - 1) * result
  if kind == 'collective-permute':
    return result
  return share * result
