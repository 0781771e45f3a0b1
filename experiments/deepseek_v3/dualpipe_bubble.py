"""How long pipeline ranks wait, and what they hold: four schedules, simulated.

Claim: with PP stages, F, B, W and FB the times of a forward, a full backward, a
weight-gradient and an overlapped forward-and-backward chunk, the bubble is
(PP-1)(F+B) in 1F1B, (PP-1)(F+B-2W) in ZB1P and (PP/2-1)(FB+B-3W) in DualPipe,
whatever the number of micro-batches; activations of PP, PP and PP+1
micro-batches are alive.
Paper: DeepSeek-V3 (arXiv 2412.19437), table 2; DualPipeV as in the table of
github.com/deepseek-ai/DualPipe; phases of a step from table 4 of "Insights into
DeepSeek-V3" (arXiv 2505.09343).
Command: python experiments/deepseek_v3/dualpipe_bubble.py
Cost: 5 seconds of a CPU.

Reproduced: the simulated bubble, in units of F, equals the closed form for
F = W = B/2 (and, for 1F1B and ZB1P, for uneven chunks), and the live
activations equal the table's. Refuted: anything beyond 1e-9.
We expect the rows of uneven chunks to be refuted for DualPipe: the closed form
is then too long. The rows of measured phases ask whether the formula gives the
bubble that was measured; there the times of single chunks follow from the
phases and the counts of the published order.
"""

from collections.abc import Sequence
import pathlib
import sys

from absl import app
from matplotlib import patches

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import insights_table_4
import script
from seekax.planning import schedule_orders, schedules
import verdicts

_NAMES = {
  '1f1b': '1F1B',
  'zb1p': 'ZB1P',
  'dualpipe': 'DualPipe',
  'dualpipev': 'DualPipeV',
}
_EVEN = schedules.Costs(1, 1, 1, pair=2.5)
_UNEVEN = schedules.Costs(2, 3, 1, pair=4)
_SIZES = (4, 8, 16)
_EXACT = 1e-9
# Okabe and Ito's palette.
_COLORS = {
  'F': '#56B4E9',
  'B': '#009E73',
  'I': '#009E73',
  'W': '#F0E442',
  'FB': '#0072B2',
}
_WORDS = {
  'F': 'forward',
  'B': 'backward',
  'W': 'weight gradients',
  'FB': 'forward and backward, overlapped',
}


def bubble_claims(costs: schedules.Costs, note: str) -> list[verdicts.Claim]:
  """The simulated bubble against the closed form."""
  return [
    verdicts.Claim(
      f'{name}, {stages} stages, {note}: bubble',
      'F',
      f'{schedules.closed_form_bubble(kind, stages, costs) / costs.forward:g}',
      lambda kind=kind, stages=stages: (
        schedules.simulate(kind, stages, 2 * stages, costs).bubble
        / costs.forward
      ),
      _EXACT,
      'closed form of table 2',
    )
    for kind, name in _NAMES.items()
    for stages in _SIZES
  ]


def memory_claims() -> list[verdicts.Claim]:
  """How many micro-batches are alive."""
  return [
    verdicts.Claim(
      f'{name}, {stages} stages: live activations',
      '',
      str(schedules.closed_form_activations(kind, stages)),
      lambda kind=kind, stages=stages: (
        schedules.simulate(
          kind, stages, 3 * stages, _EVEN
        ).peak_live_activations
      ),
      0.0,
    )
    for kind, name in _NAMES.items()
    for stages in _SIZES
  ]


def growth_claims() -> list[verdicts.Claim]:
  """The bubble with 8 times as many micro-batches, over that with few."""

  def growth(kind: str) -> float:
    few, many = (
      schedules.simulate(kind, 8, count, _EVEN).bubble for count in (16, 128)
    )
    return many / few

  return [
    verdicts.Claim(
      f'{name}: bubble of 128 over 16 micro-batches',
      'x',
      '1',
      lambda kind=kind: growth(kind),
      _EXACT,
      '8 stages',
    )
    for kind, name in _NAMES.items()
  ]


def measured_claims() -> list[verdicts.Claim]:
  """The published step: 16 stages, 120 micro-batches."""
  bubble = insights_table_4.MPFT.phases.bubble
  costs = insights_table_4.chunks()

  def simulated() -> float:
    return schedules.simulate('dualpipe', 16, 120, costs).bubble

  return [
    verdicts.Claim(
      'MPFT: bubble by the closed form',
      's',
      f'{bubble}',
      lambda: schedules.closed_form_bubble('dualpipe', 16, costs),
      0.15 * bubble,
      'claimed by nobody: of chunks derived from the phases',
      claimed=False,
    ),
    verdicts.Claim(
      'MPFT: bubble, simulated',
      's',
      f'{bubble}',
      simulated,
      0.15 * bubble,
      'claimed by nobody: of even stages and no transfers',
      claimed=False,
    ),
  ]


def all_claims() -> list[verdicts.Claim]:
  """All claims, in the order of the table."""
  return (
    bubble_claims(_EVEN, 'F=I=W')
    + bubble_claims(_UNEVEN, 'F=2 I=3 W=1 FB=4')
    + memory_claims()
    + growth_claims()
    + measured_claims()
  )


def draw(rows: list[verdicts.Row], path: pathlib.Path) -> None:
  """Gantt charts of 8 stages and 20 micro-batches."""
  del rows  # The picture shows the schedules themselves.
  runs = {
    kind: schedules.simulate(kind, 8, 20, _EVEN)
    for kind in schedule_orders.SCHEDULES
  }
  figure = script.new_figure(12, 8.5)
  heights = [len(run.events) for run in runs.values()]
  panels = figure.subplots(len(runs), 1, height_ratios=heights)
  for axes, (kind, run) in zip(panels, runs.items(), strict=True):
    for rank, events in enumerate(run.events):
      for event in events:
        axes.broken_barh(
          [(event.start, event.finish - event.start)],
          (rank + 0.04, 0.92),
          facecolor=_COLORS[event.action.kind],
          edgecolor='white',
          linewidth=0.4,
        )
    axes.set_xlim(0, runs['1f1b'].makespan)
    if kind == 'dualpipev':  # Twice the work on half the ranks.
      axes.set_xlim(0, run.makespan)
    axes.set_ylim(len(run.events), 0)
    axes.set_yticks([])
    axes.set_ylabel('ranks')
    axes.set_title(
      f'{_NAMES[kind]} on {len(run.events)} ranks: bubble {run.bubble:g} of '
      f'{run.makespan:g}, {run.peak_live_activations} activations alive',
      loc='left',
      fontsize=11,
    )
    axes.spines[['top', 'right', 'left']].set_visible(False)
  panels[-1].set_xlabel('time, in forward chunks')
  figure.legend(
    handles=[
      patches.Patch(color=_COLORS[kind], label=text)
      for kind, text in _WORDS.items()
    ],
    loc='outside lower center',
    ncols=4,
    frameon=False,
  )
  script.save_figure(
    figure, 'DualPipe waits least, the more so the more a pair overlaps', path
  )


def main(argv: Sequence[str]) -> None:
  verdicts.main(argv, all_claims, draw)


if __name__ == '__main__':
  app.run(main)
