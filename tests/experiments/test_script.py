"""A job is measured once and read back; a smoke run leaves nothing behind."""

import pathlib
import sys
import tempfile

from absl import app
from absl.testing import absltest, flagsaver

# Experiments are scripts, not a package.
sys.path.append(
  str(pathlib.Path(__file__).resolve().parents[2] / 'experiments')
)
import script


class ScriptTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    ).resolve()

  def _runs(self, *arguments, **flags):
    found = []

    def run(stem, size):
      script.file_of(stem, '.csv').write_text(size)
      found.append((stem, size))

    with flagsaver.flagsaver(**flags):
      argv = [str(self.folder / 'name.py'), *arguments]
      script.run_as_asked(argv, run, 'full', 'smoke')
    return found

  def test_results_lie_beside_the_script(self):
    stem = self.folder / 'results' / 'name'
    self.assertEqual(self._runs(), [(stem, 'full')])
    self.assertTrue((self.folder / 'results' / 'name.csv').exists())

  def test_results_lie_where_they_are_asked(self):
    outdir = self.folder / 'new' / 'folder'
    found = self._runs(outdir=str(outdir))
    self.assertEqual(found, [(outdir / 'name', 'full')])

  def test_smoke_leaves_nothing(self):
    ((stem, size),) = self._runs(smoke=True)
    self.assertEqual((stem.name, size), ('name', 'smoke'))
    self.assertFalse(stem.parent.exists())
    self.assertEmpty(list(self.folder.iterdir()))

  def test_arguments_that_are_no_flags_are_refused(self):
    with self.assertRaisesRegex(app.UsageError, 'more'):
      self._runs('more')


class TablesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / 'table.csv'

  def test_only_missing_jobs_run(self):
    runs = []

    def job(name):
      def run():
        runs.append(name)
        return {'x': 1 / 3, f'{name}, y': -2e-9}

      return run

    script.measure_missing({'a': job('a')}, self.path)
    found = script.measure_missing({'a': job('a'), 'b': job('b')}, self.path)
    self.assertEqual(runs, ['a', 'b'])
    self.assertEqual(found['a'], {'x': 1 / 3, 'a, y': -2e-9})
    self.assertEqual(found, script.read_jobs(self.path))

  def test_no_file_is_no_job(self):
    self.assertEqual(script.read_jobs(self.path), {})

  def test_rows_are_added_below_one_header(self):
    for value in (1, 2):
      script.append_rows(self.path, [{'name': 'a, b', 'value': value}])
    script.append_rows(self.path, [])
    text = 'name,value\n"a, b",1\n"a, b",2\n'
    self.assertEqual(self.path.read_text(), text)


if __name__ == '__main__':
  absltest.main()
