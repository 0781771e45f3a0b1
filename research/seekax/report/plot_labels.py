"""Names beside the ends of curves, moved apart where they would overlap."""

from collections.abc import Sequence
import dataclasses

from matplotlib.axes import Axes

FONT = 10
LINE_HEIGHT = 1.25 * FONT
# Wider than most system fonts, with which the page replaces matplotlib's.
CHARACTER = 0.56 * FONT


@dataclasses.dataclass(frozen=True)
class Label:
  """Text for the right margin, at height `y` in data units."""

  text: str
  y: float
  color: str

  @property
  def height(self) -> float:
    return LINE_HEIGHT * (1 + self.text.count('\n'))


def inner(axes: Axes) -> tuple[float, float]:
  """Width and height of the axes in points."""
  return axes.bbox.width, axes.bbox.height


def write_labels(axes: Axes, labels: Sequence[Label]) -> None:
  """Writes names in the right margin, moved apart and tied to their height."""
  width, height = inner(axes)
  low, high = axes.get_ylim()
  wanted = [
    min(max((label.y - low) / (high - low), 0), 1) * height for label in labels
  ]
  places = _spread(wanted, [label.height for label in labels], height)
  for label, start, place in zip(labels, wanted, places, strict=True):
    axes.plot(
      [1, 1 + 8 / width],
      [start / height, place / height],
      color=label.color,
      linewidth=0.7,
      transform=axes.transAxes,
      clip_on=False,
    )
    axes.text(
      1 + 11 / width,
      place / height,
      label.text,
      color=label.color,
      verticalalignment='center',
      linespacing=1.1,
      transform=axes.transAxes,
    )


def _spread(
  centres: Sequence[float], heights: Sequence[float], limit: float
) -> list[float]:
  """Moves centres in [0, limit] as little as needed for no overlap."""
  order = sorted(range(len(centres)), key=lambda i: centres[i])
  places = list(centres)
  # Half a label may stand out below and above the axes.
  edge = -LINE_HEIGHT / 2
  for i in order:
    places[i] = max(places[i], edge + heights[i] / 2)
    edge = places[i] + heights[i] / 2
  edge = limit + LINE_HEIGHT / 2
  for i in reversed(order):
    places[i] = min(places[i], edge - heights[i] / 2)
    edge = places[i] - heights[i] / 2
  return places
