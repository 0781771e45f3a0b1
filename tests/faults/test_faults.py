"""Promises under real faults: the quick ones always, all of them if slow."""

import pathlib

from absl.testing import absltest, parameterized
import fuzz
import fuzz_child
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


class FuzzTest(parameterized.TestCase):
  """What counts as a good end of a spoilt file."""

  def test_every_kind_is_tried(self):
    self.assertEqual(fuzz.COUNTS.keys(), fuzz_child.KINDS.keys())
    self.assertLen(set(fuzz.all_cases()), sum(fuzz.COUNTS.values()))
    self.assertGreaterEqual(sum(fuzz.COUNTS.values()), 500)
    some = fuzz.all_cases(0.08)
    self.assertEqual({name for name, _ in some}, fuzz.COUNTS.keys())

  @parameterized.parameters(
    (0, 'layers: 3\n', 1, 0),
    (2, 'WARNING: what\nseekax: why\n', 1, 0),
    (3, 'seekax: why\n', 9, 1 << 29),
  )
  def test_a_good_end(self, *outcome):
    self.assertEqual(fuzz_child.verdict(*outcome), '')

  @parameterized.parameters(
    (1, 'seekax: why\n', 1, 0, 'exit 1'),
    (-1, 'PanicException', 1, 0, 'exit -1'),
    (2, 'what\n', 1, 0, 'no line'),
    (2, 'Traceback\nseekax: why\n', 1, 0, 'a traceback'),
    (0, 'name: a\x1b[2J\n', 1, 0, 'is printed'),
    (2, f'seekax: {"x" * 500}\n', 1, 0, 'a line of 508 characters'),
    (2, 'seekax: why\n', 11, 0, '11.0 s'),
    (0, '', 1, 2 << 30, '2048 MiB'),
  )
  def test_a_bad_end(self, code, text, seconds, grown, words):
    found = fuzz_child.verdict(code, text, seconds, grown)
    self.assertIn(words, found)


if __name__ == '__main__':
  absltest.main()
