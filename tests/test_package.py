"""An installed wheel knows and answers what a checkout does."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from absl.testing import absltest
import pytest

import short_runs


def build(target: pathlib.Path) -> None:
  """Builds the wheel of a copy of the sources and installs it in a folder."""
  source = target.parent / 'source'
  for name in ('research', 'configs'):
    shutil.copytree(
      short_runs.ROOT / name,
      source / name,
      ignore=shutil.ignore_patterns('__pycache__', '*.egg-info'),
    )
  for name in ('setup.py', 'pyproject.toml'):
    shutil.copy(short_runs.ROOT / name, source / name)
  wheels = target.parent / 'wheels'
  pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
  flags = ['--no-deps', '--no-index']
  subprocess.run(
    [*pip, 'wheel', *flags, '--no-build-isolation', '-w', wheels, source],
    check=True,
  )
  [wheel] = wheels.iterdir()
  subprocess.run(
    [*pip, 'install', *flags, '--target', target, wheel], check=True
  )


class WheelTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    cls.installed, cls.elsewhere = cls.root / 'installed', cls.root / 'here'
    cls.elsewhere.mkdir(parents=True)
    build(cls.installed)

  def seekax(self, *args: str) -> subprocess.CompletedProcess:
    """The command of the wheel, from a folder without a checkout."""
    run = short_runs.seekax(
      *args,
      cwd=self.elsewhere,
      env={**os.environ, 'PYTHONPATH': str(self.installed)},
    )
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    return run

  def test_it_has_every_config(self):
    run = subprocess.run(
      [
        sys.executable,
        '-c',
        'import seekax.cli.flags as f; print(f.__file__, *f.config_names())',
      ],
      cwd=self.elsewhere,
      env={**os.environ, 'PYTHONPATH': str(self.installed)},
      capture_output=True,
      text=True,
      check=True,
    )
    file, *names = run.stdout.split()
    self.assertStartsWith(file, str(self.installed))
    here = sorted(
      path.stem for path in (short_runs.ROOT / 'configs').glob('*.py')
    )
    self.assertEqual(names, here)

  def test_a_plan_costs_what_it_costs_in_a_checkout(self):
    plans = []
    for number, run in enumerate((self.seekax, short_runs.seekax)):
      path = self.root / f'{number}.json'
      run('plan', '--config=v3_671b', f'--json={path}')
      plans.append(json.loads(path.read_text()))
    self.assertEqual(*plans)
    self.assertEqual(plans[0]['precision'], 'fp8')

  @pytest.mark.slow
  def test_a_run_trains_as_in_a_checkout(self):
    source = short_runs.write_corpus(self.root / 'corpus')
    args = (
      'train',
      '--config=tiny',
      f'--config.data.source={source}',
      '--config.data.heldout_fraction=0.2',
      '--config.train.steps=2',
    )
    hashes = []
    for number, run in enumerate((self.seekax, short_runs.seekax)):
      workdir = self.root / f'run{number}'
      trained = run(*args, f'--workdir={workdir}')
      self.assertEqual(trained.returncode, 0, msg=trained.stderr)
      hashes.append(run('inspect', '--hash', str(workdir)).stdout)
    self.assertEqual(*hashes)


if __name__ == '__main__':
  absltest.main()
