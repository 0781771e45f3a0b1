"""What documents say of the planner's errors is what the planner says."""

import csv
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SCRIPT = _ROOT / 'experiments' / 'deepseek_v3' / 'planner_errors.py'


def _rows(folder: pathlib.Path) -> list[dict[str, str]]:
  with (folder / 'planner_errors.csv').open(newline='') as file:
    return list(csv.DictReader(file))


class DocumentsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    with tempfile.TemporaryDirectory() as folder:
      run = subprocess.run(
        [sys.executable, str(_SCRIPT), f'--outdir={folder}'],
        capture_output=True,
        text=True,
        check=True,
      )
      cls.rows = _rows(pathlib.Path(folder))
    cls.table = [x for x in run.stdout.splitlines() if x.startswith('| ')]

  def test_planning_has_the_table(self):
    # With the heads of three tables: fitted, in sight, held out.
    self.assertLen(self.table, len(self.rows) + 3)
    text = (_ROOT / 'docs' / 'planning.md').read_text()
    for line in self.table:
      self.assertIn(line, text)

  def test_experiments_have_the_rows(self):
    lines = (_ROOT / 'experiments' / 'README.md').read_text().splitlines()
    found = {line.split(' | ')[0]: line for line in lines}
    for row in self.rows:
      line = found[f'| Planner: {row["name"]}']
      self.assertIn(f'| {float(row["ours"]):.6g} |', line)
      self.assertIn(row['verdict'], line)
      self.assertIn(row['note'], line)

  def test_kept_results_are_those_of_the_planner(self):
    for row, now in zip(
      _rows(_SCRIPT.parent / 'results'), self.rows, strict=True
    ):
      self.assertAlmostEqual(float(row.pop('ours')) / float(now.pop('ours')), 1)
      self.assertEqual(row, now)

  def test_rows_without_room_and_rows_in_sight_are_marked(self):
    self.assertLen([x for x in self.table if '**no room**' in x], 4)
    in_sight = [row for row in self.rows if row['note'].startswith('in sight')]
    self.assertLen(in_sight, 6)
    self.assertFalse([r for r in in_sight if r['verdict'] == 'reproduced'])

  def test_exact_questions_are_labelled(self):
    text = (_ROOT / 'experiments' / 'README.md').read_text()
    for label in ('S01', 'S02', 'S03', 'S04', 'S05'):
      self.assertIn(f', {label} |', text)


if __name__ == '__main__':
  absltest.main()
