"""How far the planner is from what was published of training and serving.

Claim: none of a paper. The planner's model of time (docs/planning.md) has five
constants that were fitted on the phases of DeepSeek-V3's step, on Megatron's
bfloat16 row and on the hours of Llama 3.1 405B. Every other row is held out.
Sources: "Insights into DeepSeek-V3" (arXiv 2505.09343), table 4; DeepSeek-V3
(2412.19437), table 1; the performance pages of NVIDIA's Megatron-Bridge and
NeMo AutoModel; the Llama 3.1 model card; DeepSeek's notes on its service of
February 2025, and its profile as read by InferSim.
Command: python experiments/deepseek_v3/planner_errors.py [--fit]
Cost: a second of a CPU. --fit prints the constants that the sources give.

Reproduced: a held-out row within 15 %. Refuted: beyond; no constant is bent for
it. Inconclusive: rows that were fitted, and rows in sight: their run is that of
a fitted row, or we settled a rule of the model after a first look at them.
The table also says what memory the planner finds that the row's layout takes.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import sys

from absl import app, flags
from matplotlib import axes as axes_lib

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import deviation_plot
from planner import figures, fit, runs
import script
from seekax.planning.hardware import FITTED
import verdicts

_FIT = flags.DEFINE_bool('fit', False, 'print the fitted constants and end')

_AIM = 0.15
_PHASE = 'V3 step: '
# How notes begin.
_FITTED, _IN_SIGHT, _HELD_OUT = 'fitted', 'in sight', 'held out'


def all_claims() -> list[verdicts.Claim]:
  """A claim per published row."""
  claims = []
  for row in figures.training_rows() + figures.serving_rows():
    paper = f'{row.value:.6g}'
    kind = _IN_SIGHT if row.in_sight else _HELD_OUT
    kind = _FITTED if row.fitted else kind
    claims.append(
      verdicts.Claim(
        row.name,
        row.unit,
        paper,
        lambda row=row: row.predict(FITTED),
        verdicts.share(paper, _AIM),
        f'{kind}: {row.note}' if row.note else kind,
        post_hoc=row.fitted or row.in_sight,
      )
    )
  return claims


def error_tables(rows: list[verdicts.Row]) -> str:
  """Predicted, published, error and planned memory, a table for each kind."""
  kinds = (_FITTED, _IN_SIGHT, _HELD_OUT)
  return '\n\n'.join(
    f'{kind}:\n\n'
    + _error_table([row for row in rows if row.note.startswith(kind)])
    for kind in kinds
  )


def _error_table(rows: list[verdicts.Row]) -> str:
  trained = {row.name: row for row in figures.training_rows()}
  lines = [
    '| row | predicted | published | error | planned GB of a device |',
    '|---|---|---|---|---|',
  ]
  for row in rows:
    missed = ', **missed**' if row.verdict == verdicts.REFUTED else ''
    planned = '-'
    if row.name in trained:
      planned = planned_memory(trained[row.name])
    lines.append(
      f'| {row.name} | {row.ours:.4g} {row.unit} | {row.paper} | '
      f'{row.deviation:+.1%}{missed} | {planned} |'
    )
  return '\n'.join(lines)


def planned_memory(row: figures.Published) -> str:
  """Planned GB of the row's layout.

  If its source doesn't say what is computed again, the other kinds of
  recomputation follow in brackets.
  """

  def planned(run) -> float:
    return run.training_memory().total / 1e9

  assert row.run is not None
  words = f'{planned(row.run):.1f} of {row.run.device.memory_bytes / 1e9:g}'
  if not row.remat_known:
    others = ', '.join(
      f'{remat} {planned(run):.1f}'
      for remat, run in runs.recomputing(row.run).items()
      if remat != row.run.layout.remat
    )
    words += f' recomputing {row.run.layout.remat} ({others})'
  return words if runs.fits(row.run) else f'{words}, **no room**'


def explaining_attention() -> float:
  """The attention's efficiency at which context extension takes 119K hours."""
  row = next(
    row for row in figures.training_rows() if row.name == 'V3 context extension'
  )
  low, high = 0.1, 1.0
  for _ in range(50):
    middle = (low + high) / 2
    constants = dataclasses.replace(FITTED, attention_efficiency=middle)
    if row.predict(constants) > row.value:
      low = middle
    else:
      high = middle
  return low


def draw(rows: list[verdicts.Row], path: pathlib.Path) -> None:
  """All errors, and the phases of V3's step."""
  held = [
    row
    for row in rows
    if row.verdict != verdicts.INCONCLUSIVE and row.note.startswith(_HELD_OUT)
  ]
  near = sum(row.verdict == verdicts.REPRODUCED for row in held)
  deviation_plot.save(
    rows,
    path,
    lambda axes: _draw_phases(axes, rows),
    f'{near} of {len(held)} held-out rows are predicted within 15 %',
    height=6.5,
    legend='upper right',
  )


def _draw_phases(axes: axes_lib.Axes, rows: list[verdicts.Row]) -> None:
  phases = [row for row in rows if row.name.startswith(_PHASE)]
  for shift, values, color, label in (
    (-0.2, [float(row.paper) for row in phases], '#909090', 'published'),
    (0.2, [row.ours for row in phases], '#0072B2', 'planner'),
  ):
    places = [i + shift for i in range(len(phases))]
    axes.barh(places, values, height=0.36, color=color, label=label)
  axes.set_yticks(
    range(len(phases)), [row.name.removeprefix(_PHASE) for row in phases]
  )
  axes.set_ylim(len(phases) - 0.5, -0.5)
  axes.set_xscale('log')
  axes.set_xlabel('seconds of a step')
  axes.set_title("Phases of DeepSeek-V3's step", loc='left')
  axes.legend(frameon=False, loc='upper right')
  axes.spines[['top', 'right']].set_visible(False)


def run(stem: pathlib.Path, prints_documents: bool) -> None:
  """Judges and draws; prints what docs/planning.md shows."""
  verdicts.publish(all_claims(), stem, draw)
  if prints_documents:
    rows = verdicts.read_rows(script.file_of(stem, '.csv'))
    print('\n' + error_tables(rows))
    print(
      '\ncontext extension would be right with attention at '
      f'{explaining_attention():.1%} of the bfloat16 peak; '
      f'{FITTED.attention_efficiency:.0%} is assumed'
    )


def main(argv: Sequence[str]) -> None:
  if _FIT.value:
    for name, value in dataclasses.asdict(fit.fit()).items():
      print(f'{name}: {value:.4f}')
    return
  script.run_as_asked(argv, run, full=True, smoke=False)


if __name__ == '__main__':
  app.run(main)
