"""What an experiment measures beside the numbers of a paper: a CSV of jobs.

A job is measured once and gives named numbers; its rows are written together,
so that after an interruption only what is missing runs. Verdicts and drawings
are made from these rows.
"""

from collections.abc import Callable, Mapping
import csv
import pathlib

Numbers = dict[str, float]


def read(path: pathlib.Path) -> dict[str, Numbers]:
  """Numbers of every job in a CSV; none where there is no file."""
  jobs: dict[str, Numbers] = {}
  if path.exists():
    with path.open(newline='') as file:
      for row in csv.DictReader(file):
        jobs.setdefault(row['job'], {})[row['name']] = float(row['value'])
  return jobs


def measure_missing(
  jobs: Mapping[str, Callable[[], Numbers]], path: pathlib.Path
) -> dict[str, Numbers]:
  """Runs the jobs whose rows are missing and returns all of them."""
  path.parent.mkdir(parents=True, exist_ok=True)
  done = read(path)
  is_new = not path.exists()
  with path.open('a', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    if is_new:
      writer.writerow(('job', 'name', 'value'))
    for job, run in jobs.items():
      if job not in done:
        numbers = run()
        writer.writerows((job, name, x) for name, x in numbers.items())
        file.flush()
  return read(path)
