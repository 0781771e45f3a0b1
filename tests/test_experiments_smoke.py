"""Every experiment has a smoke form, which leaves no trace in the results."""

import ast
import hashlib
import pathlib
import subprocess
import sys

from absl.testing import absltest, parameterized

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_FOLDER = _ROOT / 'experiments'
# The law is ten seconds on a quiet machine; this is for one that isn't.
_SECONDS = 120


def _has_main(path: pathlib.Path) -> bool:
  return any(
    isinstance(node, ast.FunctionDef) and node.name == 'main'
    for node in ast.parse(path.read_text()).body
  )


_SCRIPTS = [
  (path.relative_to(_ROOT).as_posix(),)
  for path in sorted(_FOLDER.glob('*/*.py'))
  if _has_main(path)
]


def _digests() -> dict[str, str]:
  """SHA-256 of every file below experiments/ that is no code."""
  return {
    path.relative_to(_ROOT).as_posix(): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in sorted(_FOLDER.rglob('*'))
    if path.is_file() and path.suffix not in ('.py', '.pyc')
  }


class ExperimentsSmokeTest(parameterized.TestCase):
  def test_there_are_scripts(self):
    self.assertNotEmpty(_SCRIPTS)

  @parameterized.parameters(_SCRIPTS)
  def test_smoke_runs_and_keeps_nothing(self, script):
    before = _digests()
    run = subprocess.run(
      [sys.executable, script, '--smoke'],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
      timeout=_SECONDS,
    )
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    self.assertEqual(_digests(), before)
    if 'verdicts' in (_ROOT / script).read_text():
      # Of numbers that are thrown away, any verdict will do.
      self.assertRegex(run.stdout, 'reproduced|refuted|inconclusive')


if __name__ == '__main__':
  absltest.main()
