"""`seekax report`: writes report.html and summary.json of a run."""

from collections.abc import Sequence
import pathlib

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.storage import workdir as workdir_lib


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  values = flags.FlagValues()
  flags_lib.define_path(values, 'workdir', 'folder of the run')
  flags_lib.parse(
    values,
    argv,
    'report',
    'Writes report.html and summary.json of a run, also while it is running.',
  )
  flags_lib.require(values, 'workdir')
  from seekax.report import run as report

  workdir = pathlib.Path(values.workdir)
  report.write(workdir)
  print(workdir / workdir_lib.REPORT)
  return 0
