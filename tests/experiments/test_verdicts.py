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


class TableTest(absltest.TestCase):
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

  def test_smoke_leaves_nothing(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    drawn = []
    verdicts.publish(
      [_claim('a', 2.0)],
      folder,
      'table',
      lambda rows, path: drawn.append(len(rows)),
      smoke=True,
    )
    self.assertEqual(drawn, [1])
    self.assertEmpty(list(folder.iterdir()))


if __name__ == '__main__':
  absltest.main()
