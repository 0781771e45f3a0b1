"""What every experiment script does: flags, folders, CSV files, figures.

A script is run by its path. Its results lie in results/ beside it and begin
with its name: results/kv_cache.csv, results/kv_cache.png. With --smoke it runs
in a small form whose results are thrown away.

A script that measures more than the numbers of a paper keeps a CSV file of
jobs. A job is measured once and gives named numbers; its rows are written
together, so that an interrupted script measures only the jobs that are missing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import csv
import pathlib
import tempfile
from typing import Any

from absl import app, flags
from matplotlib.figure import Figure

_SMOKE = flags.DEFINE_bool('smoke', False, 'run small and keep nothing')
_OUTDIR = flags.DEFINE_string(
  'outdir', '', "folder of the results; '': where the script's results lie"
)

Numbers = dict[str, float]
Measured = dict[str, Numbers]  # by job


def run_as_asked(
  argv: Sequence[str],
  run: Callable[[pathlib.Path, Any], None],
  full: Any = None,
  smoke: Any = None,
  folder: str = '',
) -> None:
  """The main function of a script.

  Args:
    argv: the script's path; what flags left of the command line follows it.
    run: takes the stem of the results and a size. The stem is the path of the
      results without what follows the script's name.
    full: the size of a full run.
    smoke: the size of a run with --smoke, whose stem is in a temporary folder.
    folder: where the results go without --outdir; '': results/ beside the
      script.

  Raises:
    app.UsageError: there are arguments that are no flags.
  """
  path = pathlib.Path(argv[0]).resolve()
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if _SMOKE.value:
    with tempfile.TemporaryDirectory() as temporary:
      run(pathlib.Path(temporary, path.stem), smoke)
    return
  outdir = pathlib.Path(_OUTDIR.value or folder or path.parent / 'results')
  outdir.mkdir(parents=True, exist_ok=True)
  run(outdir / path.stem, full)


def file_of(stem: pathlib.Path, ending: str) -> pathlib.Path:
  """The file of a script's results with an ending such as '_runs.csv'."""
  return stem.with_name(stem.name + ending)


def append_rows(
  path: pathlib.Path,
  rows: Iterable[Mapping[str, Any]],
  newline: str = '\n',
) -> None:
  """Adds rows to a CSV file.

  Args:
    path: the file. A new one gets a header.
    rows: values by column; all rows have the same columns.
    newline: what ends a line.
  """
  rows = list(rows)
  if not rows:
    return
  is_new = not path.exists()
  with path.open('a', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, rows[0], lineterminator=newline)
    if is_new:
      writer.writeheader()
    writer.writerows(rows)


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
  """The rows of a CSV file, oldest first; none where there is no file."""
  if not path.exists():
    return []
  with path.open(newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def read_jobs(path: pathlib.Path) -> Measured:
  """The numbers of every job in a CSV file; none where there is no file."""
  jobs: Measured = {}
  for row in read_rows(path):
    jobs.setdefault(row['job'], {})[row['name']] = float(row['value'])
  return jobs


def measure_missing(
  jobs: Mapping[str, Callable[[], Numbers]], path: pathlib.Path
) -> Measured:
  """Runs the jobs that a CSV file lacks; returns the numbers of all jobs."""
  done = read_jobs(path)
  for job, run in jobs.items():
    if job not in done:
      append_rows(
        path,
        [{'job': job, 'name': name, 'value': x} for name, x in run().items()],
      )
  return read_jobs(path)


def new_figure(width: float, height: float) -> Figure:
  """An empty figure; width and height are inches."""
  return Figure(figsize=(width, height), layout='constrained')


def save_figure(figure: Figure, title: str, path: pathlib.Path) -> None:
  """Adds a title, hides the frame's top and right, and writes a PNG file."""
  for axes in figure.axes:
    axes.spines[['top', 'right']].set_visible(False)
  figure.suptitle(title, x=0.01, ha='left', fontsize=14, weight='bold')
  figure.savefig(path, dpi=120)
