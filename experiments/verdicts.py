"""What all experiments share: the rule for a verdict, the table, the CSV.

A claim holds the number of a paper, a tolerance and a function that gives our
number. `publish` measures what its CSV lacks, prints
the table and draws; a drawing sees nothing but the rows of the CSV.
"""

from collections.abc import Callable, Iterable
import csv
import dataclasses
import math
import pathlib
import tempfile

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
  claimed: bool = True  # False: nobody says that it comes out, we ask what does


def printed(
  name: str,
  unit: str,
  paper: str,
  measure: Callable[[], float],
  note: str = '',
  post_hoc: bool = False,
) -> Claim:
  """A claim that must agree to the last digit printed."""
  return Claim(name, unit, paper, measure, half_digit(paper), note, post_hoc)


@dataclasses.dataclass(frozen=True)
class Row:
  """A measured claim, as it stands in the CSV."""

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
  """Rows of a CSV; none where there is no file.

  Raises:
    ValueError: a row was cut off or edited; the message names the file.
  """
  if not path.exists():
    return []
  with path.open(newline='') as file:
    records = list(csv.DictReader(file))
  try:
    return [
      Row(
        **{
          **record,
          'ours': float(record['ours']),
          'tolerance': float(record['tolerance']),
        }
      )
      for record in records
    ]
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'{path} is not a table of verdicts ({error}); delete it to measure again'
    ) from error


def append_missing(claims: Iterable[Claim], path: pathlib.Path) -> None:
  """Measures the claims whose row is missing; each is written at once."""
  done = {row.name for row in read_rows(path)}
  columns = [field.name for field in dataclasses.fields(Row)]
  is_new = not path.exists()
  with path.open('a', newline='') as file:
    writer = csv.DictWriter(file, columns, lineterminator='\n')
    if is_new:
      writer.writeheader()
    for claim in claims:
      if claim.name not in done:
        writer.writerow(dataclasses.asdict(measure(claim)))
        file.flush()


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


def publish(
  claims: list[Claim],
  outdir: pathlib.Path,
  stem: str,
  draw: Callable[[list[Row], pathlib.Path], None],
  smoke: bool = False,
) -> None:
  """Measures, prints, draws.

  Args:
    claims: in the order of the table; names are unique.
    outdir: folder of `stem`.csv and `stem`.png, made if it is missing.
    stem: name of both files.
    draw: makes a PNG of rows at a path.
    smoke: writes to a temporary folder instead, which is deleted.
  """
  if smoke:
    with tempfile.TemporaryDirectory() as folder:
      publish(claims, pathlib.Path(folder), stem, draw)
    return
  outdir.mkdir(parents=True, exist_ok=True)
  table = outdir / f'{stem}.csv'
  append_missing(claims, table)
  rows = read_rows(table)
  print(format_table(rows))
  draw(rows, outdir / f'{stem}.png')
