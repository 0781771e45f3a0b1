"""The rule for a verdict, and the table of all verdicts of a script.

A claim holds the number of a paper, a tolerance and a function that gives our
number. `publish` measures the claims that its CSV file lacks, prints the table
and draws it; a drawing sees nothing but the rows of CSV files.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import math
import pathlib
from typing import Any

import script

REPRODUCED = 'reproduced'
REFUTED = 'refuted'
INCONCLUSIVE = 'inconclusive'

# Decimal numbers like 70.272 have no exact binary form.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Claim:
  """One number of a paper, and how we get ours.

  `paper` is a string, as printed, so that its last digit is known.
  """

  name: str
  unit: str
  paper: str
  measure: Callable[[], float]
  tolerance: float
  note: str = ''
  post_hoc: bool = False  # our way of counting was fitted to the paper's number
  claimed: bool = True  # False: nobody claims the number; we ask what it is


def printed(
  name: str,
  unit: str,
  paper: str,
  measure: Callable[[], float],
  note: str = '',
) -> Claim:
  """A claim that must agree to the last digit printed."""
  return Claim(name, unit, paper, measure, half_digit(paper), note)


def holds(name: str, value: float, note: str = '') -> Claim:
  """The claim that something is so: `value` is 1 if it is, 0 if it isn't.

  NaN stands for a measurement that can't tell.
  """
  return Claim(name, '', '1', lambda: float(value), 0.0, note)


@dataclasses.dataclass(frozen=True)
class Row:
  """A measured claim, as the CSV file holds it."""

  name: str
  unit: str
  paper: str
  ours: float
  tolerance: float
  verdict: str
  note: str

  @property
  def deviation(self) -> float:
    """(ours - paper) / paper."""
    return self.ours / float(self.paper) - 1

  @property
  def relative_tolerance(self) -> float:
    return self.tolerance / abs(float(self.paper))


Draw = Callable[[list[Row], pathlib.Path], None]


def half_digit(paper: str) -> float:
  """Half a unit of the last printed digit: '37' gives 0.5, '38.94' 0.005."""
  decimals = len(paper.partition('.')[2])
  return 0.5 * 10.0**-decimals


def share(paper: str, fraction: float) -> float:
  """A tolerance of `fraction` of the paper's number."""
  return abs(float(paper)) * fraction


def judge(
  paper: float, ours: float, tolerance: float, post_hoc: bool = False
) -> str:
  """The verdict on one number.

  Args:
    paper: the published number.
    ours: our number; NaN where it could not be measured.
    tolerance: largest difference that still counts as the same number.
    post_hoc: our way of counting was chosen after a look at `paper`; agreement
      then proves nothing.

  Returns:
    'reproduced', 'refuted' or 'inconclusive'.
  """
  if math.isnan(ours):
    return INCONCLUSIVE
  if abs(ours - paper) > tolerance + _ROUNDING * abs(paper):
    return REFUTED
  return INCONCLUSIVE if post_hoc else REPRODUCED


def measure(claim: Claim) -> Row:
  """Measures and judges one claim."""
  ours = float(claim.measure())
  verdict = judge(float(claim.paper), ours, claim.tolerance, claim.post_hoc)
  if not claim.claimed:
    verdict = INCONCLUSIVE
  return Row(
    name=claim.name,
    unit=claim.unit,
    paper=claim.paper,
    ours=ours,
    tolerance=claim.tolerance,
    verdict=verdict,
    note=claim.note,
  )


def read_rows(path: pathlib.Path) -> list[Row]:
  """The rows of a CSV file; none where there is no file.

  Raises:
    ValueError: a row was cut off or edited; the message names the file.
  """
  try:
    rows = []
    for record in script.read_rows(path):
      fields: dict[str, Any] = dict(record)
      for name in ('ours', 'tolerance'):
        fields[name] = float(record[name])
      rows.append(Row(**fields))
    return rows
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'{path} is not a table of verdicts ({error}); delete it to measure again'
    ) from error


def append_missing(claims: Iterable[Claim], path: pathlib.Path) -> None:
  """Measures the claims whose row is missing; each row is written at once."""
  done = {row.name for row in read_rows(path)}
  for claim in claims:
    if claim.name not in done:
      script.append_rows(path, [dataclasses.asdict(measure(claim))])


def format_table(rows: list[Row]) -> str:
  """The table paper | ours | tolerance | verdict, as aligned text."""
  cells = [('claim', 'paper', 'ours', 'tolerance', 'verdict', 'note')]
  for row in rows:
    cells.append(
      (
        row.name,
        f'{row.paper} {row.unit}'.strip(),
        f'{row.ours:.6g}',
        f'{row.tolerance:.3g}',
        row.verdict,
        row.note,
      )
    )
  widths = [max(len(line[i]) for line in cells) for i in range(5)]
  return '\n'.join(
    ' | '.join(
      [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
      + [line[5]]
    ).rstrip(' |')
    for line in cells
  )


def counted(rows: list[Row]) -> str:
  """How many rows have each verdict, in words."""
  kinds = REPRODUCED, REFUTED, INCONCLUSIVE
  return ', '.join(
    f'{sum(row.verdict == kind for row in rows)} {kind}' for kind in kinds
  )


def reproduced(rows: list[Row]) -> str:
  """How many rows are reproduced, in words."""
  count = sum(row.verdict == REPRODUCED for row in rows)
  return f'{count} of {len(rows)} claims reproduced'


def publish(claims: Iterable[Claim], stem: pathlib.Path, draw: Draw) -> None:
  """Measures, prints and draws.

  Args:
    claims: the claims in the order of the table; names are unique.
    stem: the table is <stem>.csv, the picture <stem>.png.
    draw: writes the picture of rows to a path.
  """
  table = script.file_of(stem, '.csv')
  append_missing(claims, table)
  rows = read_rows(table)
  print(format_table(rows))
  draw(rows, script.file_of(stem, '.png'))


def publish_jobs(
  jobs: Mapping[str, Callable[[], script.Numbers]],
  kind: str,
  claims: Callable[[script.Measured], list[Claim]],
  draw: Callable[[script.Measured, list[Row], pathlib.Path], None],
  stem: pathlib.Path,
) -> None:
  """Measures the jobs that are missing, then judges and draws.

  Args:
    jobs: what measures each job.
    kind: the numbers of the jobs are kept in <stem>_<kind>.csv.
    claims: makes the claims from the numbers of all jobs.
    draw: writes the picture of these numbers and of the verdicts to a path.
    stem: as in `publish`.
  """
  measured = script.measure_missing(jobs, script.file_of(stem, f'_{kind}.csv'))
  publish(claims(measured), stem, functools.partial(draw, measured))


def main(
  argv: Sequence[str], claims: Callable[[], list[Claim]], draw: Draw
) -> None:
  """The main function of a script that only computes its claims."""
  script.run_as_asked(argv, lambda stem, _: publish(claims(), stem, draw))
