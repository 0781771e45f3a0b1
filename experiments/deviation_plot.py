"""A panel of every claim: how far ours lies from the paper's number."""

from collections.abc import Callable
import pathlib

from matplotlib import axes as axes_lib
from matplotlib import ticker

import script
import verdicts

# Okabe and Ito's palette, which colour-blind readers can tell apart, with the
# orange darkened so that it can be read as text.
COLORS = {
  verdicts.REPRODUCED: '#0072B2',
  verdicts.REFUTED: '#D55E00',
  verdicts.INCONCLUSIVE: '#B37400',
}
MARKERS = {
  verdicts.REPRODUCED: 'o',
  verdicts.REFUTED: 'X',
  verdicts.INCONCLUSIVE: 'D',
}


def save(
  rows: list[verdicts.Row],
  path: pathlib.Path,
  draw_left: Callable[[axes_lib.Axes], None],
  title: str,
  *,
  height: float,
  legend: str,
) -> None:
  """Draws rows: a panel that the script draws, and all deviations.

  Args:
    rows: the rows of the CSV file.
    path: where the PNG file goes.
    draw_left: draws the left panel.
    title: what was found.
    height: inches of the figure.
    legend: where the legend of the verdicts goes.
  """
  figure = script.new_figure(12, height)
  left, right = figure.subplots(1, 2, width_ratios=(0.72, 1))
  draw_left(left)
  draw_deviations(right, rows)
  right.set_title('All published numbers against ours', loc='left')
  right.legend(loc=legend, frameon=False, fontsize=9)
  script.save_figure(figure, title, path)


def draw_deviations(axes: axes_lib.Axes, rows: list[verdicts.Row]) -> None:
  """Dots at (ours - paper) / paper on grey bars of the tolerance."""
  positions = range(len(rows))
  percent = [100 * row.deviation for row in rows]
  limits = _limits(percent)
  for position, row in enumerate(rows):
    tolerance = 100 * row.relative_tolerance
    axes.barh(
      position, 2 * tolerance, left=-tolerance, height=0.72, color='#E4E4E4'
    )
  for verdict, color in COLORS.items():
    chosen = [i for i in positions if rows[i].verdict == verdict]
    if not chosen:
      continue
    axes.scatter(
      [percent[i] for i in chosen],
      chosen,
      color=color,
      marker=MARKERS[verdict],
      s=34,
      zorder=3,
      label=f'{verdict} ({len(chosen)})',
    )
  for i in positions:
    if rows[i].verdict != verdicts.REPRODUCED:
      _annotate(axes, rows[i], percent[i], i, limits)
  axes.axvline(0, color='#606060', linewidth=0.8, zorder=1)
  axes.set_xlim(*limits)
  axes.set_yticks(positions, [row.name for row in rows], fontsize=8)
  axes.tick_params(axis='y', length=0)
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(_percent))
  axes.set_xlabel('ours relative to the paper (grey: tolerance)')
  axes.spines[['top', 'right', 'left']].set_visible(False)


def _percent(value: float, unused_position: int) -> str:
  return f'{value:+g} %' if value else '0 %'


def _limits(percent: list[float]) -> tuple[float, float]:
  """The limits of the axis, with room for labels right of the last dot."""
  low, high = min(min(percent), -1.0), max(max(percent), 1.0)
  span = high - low
  return low - 0.06 * span, high + 0.28 * span


def _annotate(
  axes: axes_lib.Axes,
  row: verdicts.Row,
  x: float,
  y: int,
  limits: tuple[float, float],
) -> None:
  axes.text(
    x + 0.02 * (limits[1] - limits[0]),
    y,
    f'{row.paper} → {row.ours:.4g}',
    color=COLORS[row.verdict],
    fontsize=8,
    va='center',
  )
