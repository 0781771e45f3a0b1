"""The benchmark's numbers: ratios, targets, the CSVs, results.json, the plot.

A script appends its rows to a CSV of its own under `results/`; `publish` takes
the newest row of every name from all of them, writes `results.json` and
`results/benchmarks.{md,png}`. Nothing but the CSVs is read for that.
"""

from collections.abc import Iterable, Mapping, Sequence
import csv
import dataclasses
import datetime
import json
import os
import pathlib
import platform
from typing import Any

from matplotlib.figure import Figure

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / 'results'
SOURCES = ('against_transformers.csv', 'kernels.csv')

RATE, MILLISECONDS = 'tokens/s', 'ms'
MEGABYTES, BYTES_PER_TOKEN = 'MB', 'bytes/token'
_MORE_IS_BETTER = (RATE,)
_LESS_IS_BETTER = (MILLISECONDS, MEGABYTES, BYTES_PER_TOKEN)


@dataclasses.dataclass(frozen=True)
class Claim:
  """What a row must reach.

  Attributes:
    unit: of ours and the peer's number.
    target: the least ratio.
    what: in words, with the peer.
  """

  unit: str
  target: float
  what: str


CLAIMS = {
  'train_step_a': Claim(RATE, 1.0, 'training step, model a; transformers'),
  'train_step_b': Claim(RATE, 1.0, 'training step, model b; transformers'),
  'prefill': Claim(RATE, 2.0, 'prefill 8x512; transformers'),
  'decode_b1': Claim(RATE, 6.0, 'greedy decode, batch 1; transformers'),
  'decode_b8': Claim(RATE, 4.0, 'greedy decode, batch 8; transformers'),
  'train_memory': Claim(
    MEGABYTES, 1.0, 'peak resident set of training; transformers'
  ),
  'cache_bytes': Claim(
    BYTES_PER_TOKEN, 71.0, 'cache, V3 shape, bfloat16; transformers'
  ),
  'gmm_vs_ragged': Claim(MILLISECONDS, 20.0, 'grouped SwiGLU; ragged_dot'),
  'gmm_vs_dense': Claim(MILLISECONDS, 4.0, 'grouped SwiGLU; every expert'),
  'attention_memory': Claim(
    MEGABYTES, 5.0, 'attention, temporaries at L = 8192; all logits'
  ),
  'attention_time': Claim(
    MILLISECONDS, 1.0, 'attention at L = 1024; all logits'
  ),
  'loss_memory': Claim(
    MEGABYTES, 10.0, 'cross-entropy, temporaries; all logits'
  ),
  'loss_time': Claim(MILLISECONDS, 0.833, 'cross-entropy; all logits'),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison; `results.json` holds these fields.

  Attributes:
    ours, peer: medians; None where not measured, as are ratio and met.
    ratio: above 1 where ours is better.
    met: the ratio reaches the target.
  """

  name: str
  ours: float | None
  peer: float | None
  unit: str
  ratio: float | None
  target: float
  met: bool | None


def ratio(unit: str, ours: float, peer: float) -> float:
  """How many times better ours is: above 1 for more of a rate, less of a cost.

  Raises:
    ValueError: the unit is unknown, or a number isn't above 0.
  """
  if not (ours > 0 and peer > 0):
    raise ValueError(f'ours={ours}, peer={peer}: both must be above 0')
  if unit in _MORE_IS_BETTER:
    return ours / peer
  if unit in _LESS_IS_BETTER:
    return peer / ours
  raise ValueError(f'unit {unit!r}: nobody said whether more of it is better')


def compare(
  name: str, ours: float | None = None, peer: float | None = None
) -> Row:
  """The row of a name; all null without both numbers."""
  claim = CLAIMS[name]
  if ours is None or peer is None:
    return Row(name, None, None, claim.unit, None, claim.target, None)
  times = ratio(claim.unit, ours, peer)
  return Row(
    name, ours, peer, claim.unit, times, claim.target, times >= claim.target
  )


class Circumstances:
  """When and where, and how busy others kept the processors meanwhile."""

  def __init__(self):
    self._date = datetime.datetime.now(datetime.UTC)
    self._began = processor_seconds()

  def cells(self, versions: Mapping[str, str]) -> dict[str, str]:
    """Columns of the CSV, once all children have ended."""
    others = others_share(self._began, processor_seconds())
    return {
      'date': self._date.isoformat(timespec='seconds'),
      'machine': f'{platform.machine()}, {os.cpu_count()} cores, '
      + _processor(),
      'busy_with_others': f'{others:.2f}',
      'versions': ' '.join(f'{name} {v}' for name, v in versions.items()),
    }


Seconds = tuple[float, float, float]


def processor_seconds(*living: int) -> Seconds:
  """(all processors', idle ones', this process's and its children's).

  Args:
    *living: children that haven't ended, by process id.
  """
  path = pathlib.Path('/proc/stat')
  if not path.exists():
    return 0.0, 0.0, 0.0
  second = os.sysconf('SC_CLK_TCK')
  # user, nice, system, idle, iowait, irq, softirq, steal.
  ticks = [int(x) for x in path.read_text().splitlines()[0].split()[1:9]]
  own = sum(os.times()[:4])
  for process in living:
    stat = pathlib.Path(f'/proc/{process}/stat').read_text()
    # The name, in brackets, may hold spaces; utime and stime come 12th after.
    own += sum(map(int, stat.rpartition(')')[2].split()[11:13])) / second
  return sum(ticks) / second, sum(ticks[3:5]) / second, own


def others_share(before: Seconds, after: Seconds) -> float:
  """The share of all processors that other programs took, 0 to 1."""
  total, idle, own = (b - a for a, b in zip(before, after, strict=True))
  return max(total - idle - own, 0.0) / total if total > 0 else 0.0


def _processor() -> str:
  path = pathlib.Path('/proc/cpuinfo')
  lines = path.read_text().splitlines() if path.exists() else []
  names = [x.partition(':')[2].strip() for x in lines if 'model name' in x]
  return names[0] if names else platform.processor()


def append(
  path: pathlib.Path,
  rows: Sequence[Row],
  where: Mapping[str, str],
  notes: Mapping[str, str],
) -> None:
  """Adds rows to a CSV.

  Args:
    path: made if missing.
    rows: measured ones.
    where: from `circumstances`.
    notes: how a row was measured, by name.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  is_new = not path.exists()
  with path.open('a', newline='', encoding='utf-8') as file:
    columns = [*(x.name for x in dataclasses.fields(Row)), *where, 'note']
    writer = csv.DictWriter(file, columns, lineterminator='\n')
    if is_new:
      writer.writeheader()
    for row in rows:
      note = notes.get(row.name, '')
      writer.writerow(dataclasses.asdict(row) | {**where, 'note': note})


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Rows of a CSV, oldest first; none where there is no file."""
  if not path.exists():
    return []
  with path.open(newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def newest(records: Iterable[Mapping[str, str]]) -> list[Row]:
  """The newest row of every claim, in the claims' order.

  Ratio and verdict are taken anew, so that a changed target holds for what was
  measured before it.

  Args:
    records: of the CSVs; of equal dates the later one counts.
  """
  latest = {}
  for record in records:
    name = record['name']
    if name not in latest or record['date'] >= latest[name]['date']:
      latest[name] = record
  return [
    compare(name, float(latest[name]['ours']), float(latest[name]['peer']))
    if name in latest
    else compare(name)
    for name in CLAIMS
  ]


def publish(
  results: pathlib.Path = RESULTS, target: pathlib.Path = FOLDER
) -> None:
  """Merges the CSVs into the JSON, the Markdown table and the plot."""
  records = [record for name in SOURCES for record in read(results / name)]
  rows = newest(records)
  text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
  (target / 'results.json').write_text(text + '\n', encoding='utf-8')
  table = markdown(rows)
  (results / 'benchmarks.md').write_text(table + '\n', encoding='utf-8')
  draw(rows, results / 'benchmarks.png')
  print(table)


def markdown(rows: Sequence[Row]) -> str:
  """The table, aligned."""
  cells = [('what; peer', 'ours', 'peer', 'unit', 'ratio', 'target', 'met')]
  for row in rows:
    met = {True: 'yes', False: '**no**', None: 'not measured'}[row.met]
    numbers = [_number(x) for x in (row.ours, row.peer)]
    times = '' if row.ratio is None else f'{row.ratio:.2f}'
    what = CLAIMS[row.name].what
    cells.append((what, *numbers, row.unit, times, f'{row.target:g}', met))
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    '| '
    + ' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))
    + ' |'
    for line in cells
  ]
  lines.insert(1, '|' + '|'.join('-' * (w + 2) for w in widths) + '|')
  return '\n'.join(lines)


def _number(value: float | None) -> str:
  if value is None:
    return ''
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


# After Okabe and Ito's palette, which stays apart for colour-blind readers.
_MET, _MISSED, _TARGET = '#0072B2', '#D55E00', '#000000'


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Bars of the ratios on a logarithmic axis, with a mark at each target."""
  figure = Figure(figsize=(9, 5.5), layout='constrained')
  axes = figure.subplots()
  places = range(len(rows))
  for place, row in zip(places, rows, strict=True):
    if row.ratio is None:
      axes.text(1.05, place, 'not measured', va='center', fontsize=8)
      continue
    axes.barh(
      place,
      row.ratio - 1,
      left=1,  # Of a logarithmic axis, 1 is where nobody is better.
      color=_MET if row.met else _MISSED,
      height=0.6,
    )
    end = max(row.ratio, row.target, 1)
    axes.text(end * 1.12, place, f'{row.ratio:.2f}', va='center', fontsize=8)
  axes.scatter(
    [row.target for row in rows],
    places,
    marker='|',
    s=160,
    linewidths=2,
    color=_TARGET,
    zorder=3,
    label='target',
  )
  axes.set_xscale('log')
  axes.set_xlim(0.4, 200)
  axes.axvline(1, color='#606060', linewidth=0.8)
  axes.set_yticks(places, [CLAIMS[row.name].what for row in rows], fontsize=8)
  axes.invert_yaxis()
  axes.xaxis.set_major_formatter('{x:g}')
  axes.set_xlabel('times better than the peer (blue: target met, orange: not)')
  axes.legend(loc='lower right', frameon=False)
  axes.spines[['top', 'right', 'left']].set_visible(False)
  figure.savefig(path, dpi=120)
