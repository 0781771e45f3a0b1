import dataclasses
import math
import pathlib
import sys
import tempfile

from absl.testing import absltest, parameterized

# Experiments are scripts, not a package.
sys.path.append(
  str(pathlib.Path(__file__).resolve().parents[2] / 'experiments')
)
import verdicts


def _claim(name, ours):
  return verdicts.Claim(
    name=name, unit='', paper='2.0', measure=lambda: ours, tolerance=0.05
  )


class JudgeTest(parameterized.TestCase):
  @parameterized.parameters(
    (2.0, 2.05, 0.05, False, verdicts.REPRODUCED),
    (2.0, 2.06, 0.05, False, verdicts.REFUTED),
    (2.0, 1.94, 0.05, False, verdicts.REFUTED),
    (2.0, 2.0, 0.05, True, verdicts.INCONCLUSIVE),
    (2.0, 3.0, 0.05, True, verdicts.REFUTED),
    (2.0, math.nan, 0.05, False, verdicts.INCONCLUSIVE),
    (70.272, 70272 / 1000, 0.0, False, verdicts.REPRODUCED),
    (70.272, 70273 / 1000, 0.0, False, verdicts.REFUTED),
  )
  def test_rule(self, paper, ours, tolerance, post_hoc, verdict):
    self.assertEqual(verdicts.judge(paper, ours, tolerance, post_hoc), verdict)

  def test_what_nobody_claims_is_neither(self):
    for ours in (2.0, 3.0):
      claim = dataclasses.replace(_claim('x', ours), claimed=False)
      self.assertEqual(verdicts.measure(claim).verdict, verdicts.INCONCLUSIVE)

  @parameterized.parameters(('671', 0.5), ('38.94', 0.005), ('272.80', 0.005))
  def test_half_digit(self, paper, half):
    self.assertAlmostEqual(verdicts.half_digit(paper), half)


class TableTest(parameterized.TestCase):
  def test_finished_rows_are_skipped(self):
    path = (
      pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
      / 'table.csv'
    )
    verdicts.append_missing([_claim('a', 2.0)], path)
    verdicts.append_missing([_claim('a', 9.0), _claim('b', 3.0)], path)
    rows = verdicts.read_rows(path)
    self.assertEqual([row.name for row in rows], ['a', 'b'])
    self.assertEqual([row.ours for row in rows], [2.0, 3.0])
    self.assertEqual(rows[0].verdict, verdicts.REPRODUCED)
    self.assertEqual(rows[1].verdict, verdicts.REFUTED)

  def test_broken_table_is_named(self):
    path = (
      pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
      / 'table.csv'
    )
    path.write_text('name,unit,paper,ours,tolerance,verdict,note\na,,2.0\n')
    with self.assertRaisesRegex(ValueError, 'table.csv'):
      verdicts.read_rows(path)

  def test_jobs_are_measured_judged_and_drawn(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    drawn = []
    verdicts.publish_jobs(
      {'a': lambda: {'x': 2.0}, 'b': lambda: {'x': 3.0}},
      'runs',
      lambda measured: [_claim(job, measured[job]['x']) for job in measured],
      lambda measured, rows, path: drawn.append((len(measured), rows, path)),
      folder / 'table',
    )
    ((jobs, rows, path),) = drawn
    self.assertEqual((jobs, path), (2, folder / 'table.png'))
    self.assertEqual(verdicts.reproduced(rows), '1 of 2 claims reproduced')
    self.assertEqual(
      verdicts.counted(rows), '1 reproduced, 1 refuted, 0 inconclusive'
    )
    names = sorted(path.name for path in folder.iterdir())
    self.assertEqual(names, ['table.csv', 'table_runs.csv'])

  @parameterized.parameters(
    (True, verdicts.REPRODUCED),
    (False, verdicts.REFUTED),
    (math.nan, verdicts.INCONCLUSIVE),
  )
  def test_what_holds_is_reproduced(self, value, verdict):
    claim = verdicts.holds('so', value)
    self.assertEqual(verdicts.measure(claim).verdict, verdict)


if __name__ == '__main__':
  absltest.main()
