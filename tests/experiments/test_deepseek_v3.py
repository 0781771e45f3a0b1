"""Every script of experiments/deepseek_v3 runs in its smoke form."""

import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

_FOLDER = (
  pathlib.Path(__file__).resolve().parents[2] / 'experiments' / 'deepseek_v3'
)


class SmokeTest(parameterized.TestCase):
  @parameterized.parameters(
    (path.name,) for path in sorted(_FOLDER.glob('*.py'))
  )
  def test_smoke(self, script):
    outdir = (
      pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
      / 'results'
    )
    result = subprocess.run(
      [sys.executable, _FOLDER / script, '--smoke', f'--outdir={outdir}'],
      capture_output=True,
      text=True,
      check=False,
      timeout=60,
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    # Of numbers that are thrown away, any verdict will do.
    self.assertRegex(result.stdout, 'reproduced|refuted|inconclusive')
    self.assertFalse(outdir.exists())


if __name__ == '__main__':
  absltest.main()
