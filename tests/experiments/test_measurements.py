"""A job is measured once, and read back as it was written."""

import pathlib
import sys
import tempfile

from absl.testing import absltest

# Experiments are scripts, not a package.
sys.path.append(
  str(pathlib.Path(__file__).resolve().parents[2] / 'experiments')
)
import measurements


class MeasurementsTest(absltest.TestCase):
  def test_only_missing_jobs_run(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    path = pathlib.Path(folder) / 'new' / 'table.csv'
    runs = []

    def job(name):
      def run():
        runs.append(name)
        return {'x': 1 / 3, f'{name}, y': -2e-9}

      return run

    measurements.measure_missing({'a': job('a')}, path)
    found = measurements.measure_missing({'a': job('a'), 'b': job('b')}, path)
    self.assertEqual(runs, ['a', 'b'])
    self.assertEqual(found['a'], {'x': 1 / 3, 'a, y': -2e-9})
    self.assertEqual(found, measurements.read(path))

  def test_no_file_is_no_job(self):
    self.assertEqual(measurements.read(pathlib.Path('missing.csv')), {})


if __name__ == '__main__':
  absltest.main()
