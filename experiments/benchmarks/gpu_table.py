"""Tables whose measurements may fail one by one; timing; traces.

Used by `h200.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import gzip
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np

NOT_MEASURED = 'not measured'
# The largest difference between bfloat16 and float32 results, as a share of the
# largest entry.
BOUND = 2e-2

# {labels: {column: cell}}
Found = dict[tuple[str, ...], Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Case:
  """One row: its labels, and a function that measures it: {column: cell}."""

  labels: tuple[str, ...]
  measure: Callable[[], Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Section:
  """One table.

  Attributes:
    name: what --sections calls it.
    title: the heading.
    note: what the columns mean.
    labels: headers of the labels.
    columns: headers of what is measured.
    cases: the rows.
    clear: whether compiled programs are dropped after each case.
  """

  name: str
  title: str
  note: str
  labels: tuple[str, ...]
  columns: tuple[str, ...]
  cases: Sequence[Case]
  clear: bool = False


def measure(section: Section, keep: Callable[[Found], None]) -> Found:
  """Every case's cells; one that fails has its reason in the first column.

  Args:
    section: the cases.
    keep: takes each row when it is measured, so that a killed run leaves what
      it has.
  """
  found = {}
  for case in section.cases:
    try:
      cells = case.measure()
    except Exception as error:  # The others are measured all the same.
      cells = {section.columns[0]: f'failed: {_reason(error)}'}
    found[case.labels] = cells
    keep({case.labels: cells})
    if section.clear:
      # Programs and what they hold: the next case may need all the memory.
      jax.clear_caches()
  return found


def _reason(error: BaseException) -> str:
  """The innermost error's first line, short enough for a table."""
  while isinstance(error, BaseExceptionGroup):
    error = error.exceptions[-1]
  line = (str(error).strip() or 'no words').splitlines()[0]
  return f'{type(error).__name__}: {line}'.replace('|', '/')[:120]


def markdown(section: Section, found: Found) -> str:
  """A heading, the note and the table; rows that weren't measured say so."""
  headers = section.labels + section.columns
  lines = [f'## {section.title}', '', section.note, '', _line(headers)]
  lines.append(_line(['---'] * len(headers)))
  for case in section.cases:
    cells = found.get(case.labels, {})
    missing = '' if cells else NOT_MEASURED
    row = [cells.get(column, missing) for column in section.columns]
    lines.append(_line([*case.labels, *row]))
  return '\n'.join(lines) + '\n'


def _line(cells: Iterable[str]) -> str:
  return '| ' + ' | '.join(cells) + ' |'


def seconds(
  function: Callable[..., Any], args: Sequence, repeats: int
) -> float:
  """Median of `repeats` measurements of a compiled function, after a warm-up.

  A measurement is as many calls as fill about 20 ms, awaited together, so that
  launching a call is hidden, as it is in a training step.
  """
  jax.block_until_ready(function(*args))
  one = median_of(lambda: jax.block_until_ready(function(*args)), 1)
  calls = int(min(max(0.02 / max(one, 1e-9), 1), 100))

  def group():
    result = None
    for _ in range(calls):
      result = function(*args)
    jax.block_until_ready(result)

  return median_of(group, repeats) / calls


def median_of(action: Callable[[], None], repeats: int) -> float:
  """Median seconds of an action that waits for its results."""
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    action()
    times.append(time.perf_counter() - began)
  return statistics.median(times)


@functools.partial(jax.jit, static_argnums=(1, 2))
def normal(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def milliseconds(spent: float) -> str:
  return f'{spent * 1e3:.3f}'


def tera(operations: float, spent: float) -> str:
  """10^12 operations per second."""
  return f'{operations / spent / 1e12:.1f}'


def check_close(what: str, actual: Any, expected: Any, bound: float) -> None:
  """Raises AssertionError if an error exceeds `bound` of the largest entry."""
  actual = np.asarray(actual, np.float32)
  expected = np.asarray(expected, np.float32)
  worst = np.abs(actual - expected).max() / np.abs(expected).max()
  if not worst < bound:  # NaN fails too.
    raise AssertionError(f'{what}: {worst:.3g} of the largest entry apart')


def kernel_totals(folder: pathlib.Path) -> dict[str, float]:
  """Milliseconds of every kernel in a Perfetto trace of JAX's profiler.

  Args:
    folder: where the trace was written, with a Perfetto file.

  Returns:
    {kernel: milliseconds on the device}, the largest first; empty if the trace
    has no device.
  """
  (path,) = folder.rglob('perfetto_trace.json.gz')
  events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
  return totals(events)


def totals(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
  """The same from a trace's events; only those on a device's streams count."""
  events = list(events)
  names = {'process_name': {}, 'thread_name': {}}
  for event in events:
    if event.get('ph') == 'M' and event['name'] in names:
      key = event['pid'], event.get('tid', 0)
      names[event['name']][key] = event['args']['name']
  devices = {
    pid for (pid, _), name in names['process_name'].items() if 'GPU' in name
  }
  found = {}
  for event in events:
    if event.get('ph') != 'X' or event['pid'] not in devices:
      continue
    thread = names['thread_name'].get((event['pid'], event['tid']), '')
    if 'Stream' in thread:
      spent = found.get(event['name'], 0.0)
      found[event['name']] = spent + event['dur'] / 1e3
  return dict(sorted(found.items(), key=lambda item: -item[1]))
