"""Promises under real faults: the quick ones always, all of them if slow."""

import pathlib

from absl.testing import absltest, parameterized
import harness
import pytest
import run

QUICK = [(fault.number, fault) for fault in run.FAULTS if fault.quick]


class FaultsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    root.mkdir()
    cls.bench = harness.Bench(root)

  @parameterized.named_parameters(QUICK)
  def test_promise_is_kept(self, fault):
    self.assertNotEmpty(fault.inject(self.bench))

  @pytest.mark.slow
  def test_all_promises_are_kept(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    verdicts = run.inject_all(run.FAULTS, root, jobs=2)
    self.assertNotIn(run.BROKEN, verdicts)
    self.assertGreater(verdicts.count(run.KEPT), len(verdicts) / 2)


class TableTest(parameterized.TestCase):
  """The verdicts of the table are those of what was measured."""

  @parameterized.parameters(
    (None, run.KEPT),
    (harness.BrokenPromiseError('x'), run.BROKEN),
    (harness.NotRunError('x'), run.NOT_RUN),
    (KeyError('x'), run.BROKEN),
  )
  def test_verdict(self, error, expected):
    def inject(bench):
      del bench
      if error:
        raise error
      return 'measured'

    fault = harness.Fault('F0', 'what', 'promise', inject)
    verdict, measured, _ = run.inject(fault, None)
    self.assertEqual(verdict, expected)
    self.assertIn('x' if error else 'measured', measured)

  def test_numbers_are_unique(self):
    numbers = [fault.number for fault in run.FAULTS]
    self.assertLen(set(numbers), len(numbers))
    self.assertNotEmpty(QUICK)


if __name__ == '__main__':
  absltest.main()
