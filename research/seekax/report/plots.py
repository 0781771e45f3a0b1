"""Figures as SVG text for HTML pages, without scripts or network.

Text in them stays text. Sizes are in points, one per unit of the SVG. The
functions are pure: they draw on a `Figure` of their own and don't change
matplotlib's global state.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import io
import math
import re

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
import numpy as np

from seekax.report.plot_labels import (
  CHARACTER,
  FONT,
  inner,
  Label,
  LINE_HEIGHT,
  write_labels,
)

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = '#0072b2', '#d55e00', '#009e73', '#5f6b7a'
_PARTS = (BLUE, ORANGE, GREEN, '#56b4e9', '#e69f00', '#cc79a7', GREY)
WIDTH, HEIGHT = 380, 236
NARROW = 320  # Width of a figure in a row of three.
_LEFT, _TOP, _BOTTOM = 42, 26, 40
# At this width, more points than this can't be told apart.
_MOST_POINTS = 800
# With more curves than this, names take one line each and points aren't drawn.
_FEW = 3
# Expert loads above 4 times the mean or below a quarter of it share a colour.
_LOAD_LIMIT = 2.0

_STYLE = {
  'svg.fonttype': 'none',
  'figure.dpi': 72,
  'font.size': FONT,
  'font.family': 'DejaVu Sans',
  'text.color': '#1f2933',
  'axes.edgecolor': '#9aa5b1',
  'axes.labelcolor': '#3e4c59',
  'axes.labelsize': FONT,
  'axes.titlesize': FONT + 1,
  'axes.titleweight': 'bold',
  'axes.linewidth': 0.8,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': '#e4e7eb',
  'grid.linewidth': 0.7,
  'xtick.color': '#9aa5b1',
  'ytick.color': '#9aa5b1',
  'xtick.labelcolor': '#3e4c59',
  'ytick.labelcolor': '#3e4c59',
  'lines.linewidth': 1.6,
  'lines.solid_capstyle': 'round',
}


@dataclasses.dataclass(frozen=True)
class Series:
  """A curve, with its name and last value beside its last point.

  Attributes:
    label: its name; '' for none.
    points: (x, y) pairs; pairs that contain None are left out.
    color: colour of curve and label.
    marker: '' for none, 'open' or 'full'.
    smooth: draw the running median, and, where there are few curves, the points
      faintly behind it.
  """

  label: str
  points: Sequence[tuple[float | None, float | None]]
  color: str = BLUE
  marker: str = ''
  smooth: bool = False


@dataclasses.dataclass(frozen=True)
class Level:
  """A horizontal dashed line for comparison, named at its right end."""

  label: str
  y: float


def lines(
  title: str,
  x_label: str,
  series: Sequence[Series],
  levels: Sequence[Level] = (),
  from_zero: bool = False,
  skip_start: bool = False,
  width: float = WIDTH,
) -> str:
  """Draws curves over a common axis, with their names in the right margin.

  Args:
    title: what the vertical axis shows, and its unit.
    x_label: what the horizontal axis shows, and its unit.
    series: curves; those without points are left out.
    levels: lines for comparison.
    from_zero: whether the vertical axis starts at 0.
    skip_start: whether a steep beginning may leave the figure at the top, so
      that the rest fills the height.
    width: width in points.

  Returns:
    An <svg> element.
  """
  series = [
    dataclasses.replace(s, points=_thin(_present(s.points))) for s in series
  ]
  series = [s for s in series if s.points]
  crowded = len(series) > _FEW
  labels = [_label(s, ' ' if crowded else '\n') for s in series if s.label]
  labels += [Label(level.label, level.y, GREY) for level in levels]
  longest = max(
    (len(line) for x in labels for line in x.text.split('\n')), default=0
  )
  with matplotlib.rc_context():
    _set_style(title)
    margin = 14 + longest * CHARACTER
    figure, axes = _canvas(width, HEIGHT, margin)
    axes.set_title(title, loc='left', x=-(_LEFT - 6) / inner(axes)[0])
    axes.set_xlabel(x_label)
    _set_limits(axes, series, levels, from_zero, skip_start)
    for item in series:
      _draw(axes, item, faint=item.smooth and not crowded)
    for level in levels:
      axes.axhline(level.y, color=GREY, linewidth=1, dashes=(4, 3), zorder=3)
    write_labels(axes, labels)
    return _to_svg(figure, title)


def stacked_bars(
  title: str,
  x_label: str,
  bars: Mapping[str, Mapping[str, float]],
  width: float = WIDTH,
) -> str:
  """Draws horizontal bars divided into parts, with values in the legend.

  Args:
    title: what the bars show.
    x_label: the unit.
    bars: for each bar's name, its parts by name; parts of 0 are left out.
    width: width in points.

  Returns:
    An <svg> element.
  """
  parts = list(
    dict.fromkeys(
      part for bar in bars.values() for part, value in bar.items() if value
    )
  )
  colors = [_PARTS[i % len(_PARTS)] for i in range(len(parts))]
  left = 12 + max(map(len, bars)) * CHARACTER
  legend = LINE_HEIGHT * len(parts) if len(parts) > 1 else 0
  height = _TOP + 34 * len(bars) + _BOTTOM + legend
  with matplotlib.rc_context():
    _set_style(title)
    figure = _figure(width, height)
    axes = _axes(figure, left, _BOTTOM + legend, width - left - 14, _TOP)
    axes.grid(visible=False, axis='y')
    for place, bar in enumerate(bars.values()):
      start = 0.0
      for part, color in zip(parts, colors, strict=True):
        value = bar.get(part, 0.0)
        axes.barh(place, value, 0.62, start, color=color, edgecolor='white')
        start += value
    axes.set_yticks(range(len(bars)), list(bars))
    axes.tick_params(axis='y', length=0)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_title(title, loc='left', x=-(left - 6) / inner(axes)[0])
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    for place, (part, color) in enumerate(zip(parts, colors, strict=True)):
      if legend:
        y = (legend - (place + 0.5) * LINE_HEIGHT) / height
        amounts = ', '.join(short(bar.get(part, 0)) for bar in bars.values())
        for x, text, shade in (
          (left, '■', color),
          (left + 14, f'{part}: {amounts}', '#3e4c59'),
        ):
          figure.text(
            x / width, y, text, color=shade, verticalalignment='center'
          )
    return _to_svg(figure, title)


def load_map(
  title: str,
  rows: Sequence[Sequence[float]],
  row_labels: Sequence[str],
  width: float = WIDTH,
) -> str:
  """Draws expert load over its row's mean, on the same scale for all maps.

  Args:
    title: when the load was taken.
    rows: number of choices of each expert, one row per router.
    row_labels: names of the rows.
    width: width in points.

  Returns:
    An <svg> element. White is the mean; colour shows log2(load / mean).
  """
  loads = np.asarray(rows, np.float64)
  ratio = loads / np.maximum(loads.mean(axis=1, keepdims=True), 1e-9)
  shade = np.log2(np.clip(ratio, 2.0**-_LOAD_LIMIT, 2.0**_LOAD_LIMIT))
  names = max(len(label) for label in row_labels) * CHARACTER
  row_height = min(26.0, max(6.0, 360 / len(rows)))
  # The bottom holds tick labels, the axis label, and the scale with its ticks.
  bottom, left = 96, 12 + names
  with matplotlib.rc_context():
    _set_style(title)
    figure = _figure(width, _TOP + row_height * len(rows) + bottom)
    axes = _axes(figure, left, bottom, width - left - 14, _TOP)
    axes.grid(False)
    image = axes.imshow(
      shade,
      cmap='RdBu_r',
      vmin=-_LOAD_LIMIT,
      vmax=_LOAD_LIMIT,
      aspect='auto',
      interpolation='none',
    )
    axes.set_title(title, loc='left', x=-(left - 6) / inner(axes)[0])
    axes.set_xlabel('expert')
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    stride = math.ceil(1.1 * LINE_HEIGHT / row_height)
    shown = [i for i in range(len(rows)) if i % stride == 0]
    # The last row is always named, because it may be that of an MTP module.
    shown = [i for i in shown if len(rows) - i > stride] + [len(rows) - 1]
    axes.set_yticks(shown, [row_labels[i] for i in shown])
    axes.tick_params(length=0)
    bar = figure.colorbar(
      image,
      cax=_axes(figure, left, 34, width - left - 14, None, height=9),
      orientation='horizontal',
      ticks=[-2, -1, 0, 1, 2],
    )
    bar.ax.set_xticklabels(['≤ ¼', '½', 'mean', '2×', '≥ 4×'])
    bar.ax.grid(False)
    for tick, side in ((0, 'left'), (-1, 'right')):
      bar.ax.get_xticklabels()[tick].set_horizontalalignment(side)
    bar.outline.set_linewidth(0.5)
    return _to_svg(figure, title)


def shades(number: int) -> list[str]:
  """Colours from light to dark for curves that have an order."""
  colors = matplotlib.colormaps['viridis_r'](np.linspace(0.25, 1, number))
  return [matplotlib.colors.to_hex(color) for color in colors]


def short(number: float) -> str:
  """A number in short form: 950, 2.9k, 15M, 671B, 14.8T."""
  for power, letter in ((12, 'T'), (9, 'B'), (6, 'M'), (3, 'k')):
    # A number that rounds up to a thousand gets the next letter.
    if abs(number) >= 0.9995 * 10**power:
      return f'{float(f"{number / 10**power:.3g}"):.12g}{letter}'
  return f'{float(f"{number:.3g}"):g}'


def _set_style(salt: str) -> None:
  """Sets matplotlib's style, also against the user's matplotlibrc."""
  matplotlib.rcdefaults()
  # Names in an SVG are hashes; those of two figures on a page must differ.
  matplotlib.rcParams.update(_STYLE | {'svg.hashsalt': salt})


def _figure(width: float, height: float) -> Figure:
  return Figure(figsize=(width / 72, height / 72), facecolor='none')


def _axes(figure: Figure, left, bottom, width, top, height=None) -> Axes:
  """Axes at a position in points; `top` is the distance from the upper edge."""
  whole_width, whole_height = figure.get_size_inches() * 72
  if height is None:
    height = whole_height - bottom - top
  return figure.add_axes(
    (
      left / whole_width,
      bottom / whole_height,
      width / whole_width,
      height / whole_height,
    ),
    facecolor='none',
  )


def _canvas(width: float, height: float, margin: float) -> tuple[Figure, Axes]:
  figure = _figure(width, height)
  return figure, _axes(figure, _LEFT, _BOTTOM, width - _LEFT - margin, _TOP)


def _present(points) -> list[tuple[float, float]]:
  return [(x, y) for x, y in points if x is not None and y is not None]


def _thin(points: list) -> list:
  stride = math.ceil(len(points) / _MOST_POINTS) or 1
  # Counted from the end, because the last point is labelled.
  return points[::-1][::stride][::-1]


def _drawn(series: Series) -> list[tuple[float, float]]:
  """The points, or their running median, which is shorter at both ends."""
  points = _present(series.points)
  if not series.smooth:
    return points
  reach = len(points) // 30
  y = [y for _, y in points]
  return [
    (x, float(np.median(y[max(0, i - reach) : i + reach + 1])))
    for i, (x, _) in enumerate(points)
  ]


def _label(series: Series, separator: str) -> Label:
  last = _drawn(series)[-1][1]
  return Label(f'{series.label}{separator}{short(last)}', last, series.color)


def _draw(axes: Axes, series: Series, faint: bool) -> None:
  if faint:
    axes.plot(
      *zip(*series.points, strict=True),
      color=series.color,
      alpha=0.3,
      linewidth=0.8,
    )
  marker = dict(
    marker='o' if series.marker or len(series.points) == 1 else '',
    markersize=5.5,
    markerfacecolor='white' if series.marker == 'open' else series.color,
    markeredgewidth=1.4,
  )
  axes.plot(*zip(*_drawn(series), strict=True), color=series.color, **marker)


def _set_limits(axes: Axes, series, levels, from_zero, skip_start) -> None:
  x = [x for s in series for x, _ in s.points]
  # This leaves space for half a marker at the end.
  axes.set_xlim(0, 1.02 * max(x, default=0) or 1)
  tops = [level.y for level in levels]
  bottoms = list(tops)
  for item in series:
    y = [y for _, y in item.points]
    bottoms.append(min(y))
    # The quantile of a falling curve leaves out its first tenth.
    tops.append(float(np.quantile(y, 0.9)) if skip_start else max(y))
  low, high = min(bottoms, default=0), max(tops, default=1)
  if from_zero:
    low = min(low, 0)
  pad = 0.08 * (high - low) or 0.1 * abs(high) or 1
  axes.set_ylim(low if from_zero and low == 0 else low - pad, high + pad)
  whole = all(isinstance(value, int) for value in x)
  for axis, integer in ((axes.xaxis, whole), (axes.yaxis, False)):
    axis.set_major_locator(
      MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), integer=integer)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _to_svg(figure: Figure, title: str) -> str:
  """The <svg> element alone: no XML head, no metadata, no names of groups."""
  buffer = io.StringIO()
  nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
  figure.savefig(buffer, format='svg', metadata=nothing)
  svg = buffer.getvalue()
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<g id="[^"]*"', '<g', svg)
  svg = re.sub(r'<!--.*?-->\n?', '', svg, flags=re.DOTALL)
  # The page decides the size; the viewBox keeps the proportions.
  head, rest = svg.split('>', 1)
  head = re.sub(r' (width|height|version|xmlns|xmlns:xlink)="[^"]*"', '', head)
  return f'{head} role="img" aria-label="{title}">{rest.strip()}'
