"""What parity measures: rows, their verdicts, one table."""

from collections.abc import Sequence
import csv
import dataclasses
import math
import pathlib

HOLDS, BROKEN, TOLD = 'holds', 'broken', 'told'
_COLUMNS = ('check', 'model', 'measured', 'bound', 'verdict', 'note')


@dataclasses.dataclass(frozen=True)
class Row:
  """One number.

  Attributes:
    check: what it is.
    model: of which model.
    measured: a distance or a count.
    bound: the most it may be; None: it is only told.
    note: what else is worth knowing.
  """

  check: str
  model: str
  measured: float
  bound: float | None = None
  note: str = ''

  @property
  def verdict(self) -> str:
    """NaN is below no bound."""
    if self.bound is None:
      return TOLD
    return HOLDS if self.measured <= self.bound else BROKEN

  def cells(self) -> tuple[str, ...]:
    bound = '' if self.bound is None else _number(self.bound)
    measured = _number(self.measured)
    return self.check, self.model, measured, bound, self.verdict, self.note


def _number(value: float) -> str:
  if isinstance(value, int):
    return str(value)
  return f'{value:.1e}' if math.isfinite(value) else 'not finite'


def markdown(rows: Sequence[Row]) -> str:
  """The table, aligned."""
  lines = [_COLUMNS, *(row.cells() for row in rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = [
    '| '
    + ' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))
    + ' |'
    for line in lines
  ]
  text.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
  return '\n'.join(text)


def write(rows: Sequence[Row], path: pathlib.Path) -> None:
  """The same as CSV."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='', encoding='utf-8') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(_COLUMNS)
    writer.writerows(row.cells() for row in rows)
