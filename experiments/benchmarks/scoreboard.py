"""The benchmark's numbers: ratios, targets, the CSVs, results.json, the plot.

A script appends its rows to a CSV file under `results/`; `publish` takes the
newest row of every name from all these files and writes `results.json` and
`results/benchmarks.{md,png}`. It reads nothing but the CSV files.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import datetime
import json
import os
import pathlib
import platform

import script

FOLDER = pathlib.Path(__file__).resolve().parent
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
    unit: the unit of our number and the peer's.
    target: the least ratio.
    what: what is compared, and the peer.
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
    name: the claim's name.
    ours: our median; None if it wasn't measured, and then so are the peer's,
      the ratio and `met`.
    peer: the peer's median.
    unit: the unit of both.
    ratio: above 1 if ours is better.
    target: the least ratio.
    met: whether the ratio reaches the target.
  """

  name: str
  ours: float | None
  peer: float | None
  unit: str
  ratio: float | None
  target: float
  met: bool | None


def ratio(unit: str, ours: float, peer: float) -> float:
  """How many times better ours is: above 1 for a higher rate or a lower cost.

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
  """The row of a name; nothing is measured unless both numbers are given."""
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
    """The columns of the CSV file, once all children have ended."""
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
  """Seconds of all processors, of idle ones, and of this process.

  Args:
    *living: process ids of children that haven't ended. They count as this
      process, and so do children that have.
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


def add_and_publish(
  stem: pathlib.Path,
  rows: Sequence[Row],
  where: Mapping[str, str],
  notes: Mapping[str, str],
) -> None:
  """Adds rows to a script's CSV file, and publishes all rows.

  Args:
    stem: the file is <stem>.csv.
    rows: measured rows.
    where: cells of `Circumstances`.
    notes: how a row was measured, by name.
  """
  script.append_rows(
    script.file_of(stem, '.csv'),
    [
      dataclasses.asdict(row) | {**where, 'note': notes.get(row.name, '')}
      for row in rows
    ],
  )
  publish(stem.parent)


def newest(records: Iterable[Mapping[str, str]]) -> list[Row]:
  """The newest row of every claim, in the claims' order.

  Ratio and verdict are computed anew, so that a changed target also judges what
  was measured before.

  Args:
    records: the rows of the CSV files; the last of equal dates counts.
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


def publish(results: pathlib.Path) -> None:
  """Merges the CSV files of a folder into the JSON, the table and the plot.

  results.json lies beside the folder if it is `RESULTS`, else in it.
  """
  target = FOLDER if results == RESULTS else results
  rows = newest(
    record for name in SOURCES for record in script.read_rows(results / name)
  )
  text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
  (target / 'results.json').write_text(text + '\n', encoding='utf-8')
  table = markdown(rows)
  (results / 'benchmarks.md').write_text(table + '\n', encoding='utf-8')
  draw(rows, results / 'benchmarks.png')
  print(table)


def markdown(rows: Sequence[Row]) -> str:
  """The table, with aligned columns."""
  cells = [('what; peer', 'ours', 'peer', 'unit', 'ratio', 'target', 'met')]
  for row in rows:
    met = {True: 'yes', False: '**no**', None: 'not measured'}[row.met]
    ours, peer = (_number(x) for x in (row.ours, row.peer))
    times = '' if row.ratio is None else f'{row.ratio:.2f}'
    what = CLAIMS[row.name].what
    cells.append((what, ours, peer, row.unit, times, f'{row.target:g}', met))
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


# Okabe and Ito's palette, which colour-blind readers can tell apart.
_MET, _MISSED, _TARGET = '#0072B2', '#D55E00', '#000000'


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Bars of the ratios on a logarithmic axis, with a mark at each target."""
  figure = script.new_figure(9, 5.5)
  axes = figure.subplots()
  places = range(len(rows))
  for place, row in zip(places, rows, strict=True):
    if row.ratio is None:
      axes.text(1.05, place, 'not measured', va='center', fontsize=8)
      continue
    axes.barh(
      place,
      row.ratio - 1,
      left=1,  # The axis is logarithmic; at 1 neither is better.
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
