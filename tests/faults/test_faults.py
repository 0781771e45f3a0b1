"""Promises under real faults: the quick ones always, all of them if slow."""

import contextlib
import functools
import io
import pathlib
import tempfile

from absl.testing import absltest, parameterized
import bad_numbers
from commands import BrokenPromiseError
import damage
import fuzz
import fuzz_child
import harness
import killing
import pytest
import refusals
import run
import several

_TESTS = pathlib.Path(__file__).parents[1]


@functools.cache
def bench() -> harness.Bench:
  """One for all classes that come to this process after each other."""
  root = tempfile.mkdtemp(prefix='faults', dir=absltest.FLAGS.test_tmpdir)
  return harness.Bench(pathlib.Path(root))


def tearDownModule():
  if bench.cache_info().currsize:
    bench().close()
    bench.cache_clear()


def numbered(faults, quick=False):
  """Those that are injected here: others name tests that run by themselves."""
  return [(f.number, f) for f in faults if f.quick == quick and not f.tests]


class FaultCase(parameterized.TestCase):
  def check(self, fault):
    try:
      self.assertNotEmpty(fault.inject(bench()))
    except harness.NotRunError as error:
      self.skipTest(str(error))


# Classes, since they are what is dealt out to processes. The mark stands below:
# above, the tests made of it would lose it.
class QuickTest(FaultCase):
  @parameterized.named_parameters(numbered(run.FAULTS, quick=True))
  def test_promise_is_kept(self, fault):
    self.check(fault)


class SeveralTest(FaultCase):
  @parameterized.named_parameters(numbered(several.FAULTS))
  @pytest.mark.slow
  def test_promise_is_kept(self, fault):
    self.check(fault)


class KillingTest(FaultCase):
  @parameterized.named_parameters(numbered(killing.FAULTS))
  @pytest.mark.slow
  def test_promise_is_kept(self, fault):
    self.check(fault)


class BadNumbersTest(FaultCase):
  @parameterized.named_parameters(numbered(bad_numbers.FAULTS))
  @pytest.mark.slow
  def test_promise_is_kept(self, fault):
    self.check(fault)


class DamageTest(FaultCase):
  @parameterized.named_parameters(numbered(damage.FAULTS))
  @pytest.mark.slow
  def test_promise_is_kept(self, fault):
    self.check(fault)


class RefusalsTest(FaultCase):
  @parameterized.named_parameters(numbered((*refusals.FAULTS, *fuzz.FAULTS)))
  @pytest.mark.slow
  def test_promise_is_kept(self, fault):
    self.check(fault)


class TableTest(parameterized.TestCase):
  """The verdicts of the table are those of what was measured."""

  @parameterized.parameters(
    (None, run.KEPT),
    (BrokenPromiseError('x'), run.BROKEN),
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

  def test_every_row_is_printed_and_counted(self):
    def keep(bench):
      del bench
      return 'measured'

    def refuse(bench):
      raise harness.NotRunError('no disk')

    def lose(bench):
      raise BrokenPromiseError('lost')

    faults = [
      harness.Fault(f'F{number}', 'what', 'promise', inject)
      for number, inject in enumerate((keep, refuse, lose))
    ]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      root = pathlib.Path(self.create_tempdir().full_path)
      verdicts = run.inject_all(faults, root, jobs=2)
    self.assertEqual(verdicts, [run.KEPT, run.NOT_RUN, run.BROKEN])
    for words in ('F0 ', 'measured: lost', 'not run on this machine: F1'):
      self.assertIn(words, out.getvalue())
    self.assertEndsWith(out.getvalue(), '2 faults, 1 promises kept\n')

  def test_every_fault_is_injected_or_is_tests(self):
    numbers = [fault.number for fault in run.FAULTS]
    self.assertLen(set(numbers), len(numbers))
    injected = [
      name.removeprefix('test_promise_is_kept_')
      for case in FaultCase.__subclasses__()
      for name in dir(case)
      if name.startswith('test_promise_is_kept')
    ]
    tested = [fault.number for fault in run.FAULTS if fault.tests]
    self.assertCountEqual(injected + tested, numbers)

  def test_tests_that_are_faults_exist_and_are_not_slow(self):
    named = [name for fault in run.FAULTS for name in fault.tests]
    self.assertNotEmpty(named)
    for name in named:
      path, _, case = name.partition('::')
      before, found, _ = (
        (_TESTS.parent / path).read_text().partition(f'\nclass {case}(')
      )
      self.assertNotEmpty(found, name)
      self.assertNotEndsWith(before, '@pytest.mark.slow', name)


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
