import csv
import json
import os
import pathlib
import sys
import tempfile

from absl.testing import absltest, parameterized

# Experiments are scripts, not a package.
sys.path.extend(
  str(pathlib.Path(__file__).resolve().parents[2] / 'experiments' / name)
  for name in ('', 'benchmarks')
)
import asked
import pair
import scoreboard

import script

_FOLDER = pathlib.Path(scoreboard.__file__).parent
_FIELDS = ['name', 'ours', 'peer', 'unit', 'ratio', 'target', 'met']
_NAMES = [
  'train_step_a',
  'train_step_b',
  'prefill',
  'decode_b1',
  'decode_b8',
  'train_memory',
  'cache_bytes',
  'gmm_vs_ragged',
  'gmm_vs_dense',
  'attention_memory',
  'attention_time',
  'loss_memory',
  'loss_time',
]


def _record(name, ours, peer, date='2026-01-01'):
  return {'name': name, 'ours': str(ours), 'peer': str(peer), 'date': date}


def _of(rows, name):
  return next(row for row in rows if row.name == name)


class RatioTest(parameterized.TestCase):
  @parameterized.parameters(('tokens/s',))
  def test_more_of_a_rate_is_above_one(self, unit):
    self.assertEqual(scoreboard.ratio(unit, 300.0, 100.0), 3.0)
    self.assertLess(scoreboard.ratio(unit, 100.0, 300.0), 1)

  @parameterized.parameters(('ms',), ('MB',), ('bytes/token',))
  def test_less_of_a_cost_is_above_one(self, unit):
    self.assertEqual(scoreboard.ratio(unit, 100.0, 300.0), 3.0)
    self.assertLess(scoreboard.ratio(unit, 300.0, 100.0), 1)

  @parameterized.parameters(('tokens/s',), ('ms',), ('MB',), ('bytes/token',))
  def test_level_is_one_and_swapping_inverts(self, unit):
    self.assertEqual(scoreboard.ratio(unit, 7.0, 7.0), 1.0)
    there, back = (scoreboard.ratio(unit, *x) for x in ((2.0, 8.0), (8.0, 2.0)))
    self.assertAlmostEqual(there * back, 1.0)

  @parameterized.parameters(('ms', 0.0, 1.0), ('ms', 1.0, float('nan')))
  def test_nothing_measured_has_no_ratio(self, *args):
    with self.assertRaises(ValueError):
      scoreboard.ratio(*args)

  def test_unknown_unit_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'furlong'):
      scoreboard.ratio('furlong', 1.0, 1.0)

  def test_every_unit_has_a_direction(self):
    for claim in scoreboard.CLAIMS.values():
      self.assertGreater(scoreboard.ratio(claim.unit, 1.0, 1.0), 0)


class CompareTest(absltest.TestCase):
  def test_target_itself_is_met(self):
    self.assertTrue(scoreboard.compare('prefill', 200.0, 100.0).met)
    self.assertFalse(scoreboard.compare('prefill', 199.0, 100.0).met)
    self.assertTrue(scoreboard.compare('loss_time', 100.0, 83.3).met)

  def test_cache_bytes_of_the_published_shapes(self):
    self.assertTrue(scoreboard.compare('cache_bytes', 70272, 4997120).met)

  def test_half_a_measurement_is_none(self):
    row = scoreboard.compare('prefill', 200.0)
    self.assertEqual((row.ours, row.peer, row.ratio, row.met), (None,) * 4)
    self.assertEqual((row.unit, row.target), ('tokens/s', 2.0))


class NewestTest(absltest.TestCase):
  def test_every_name_in_order(self):
    rows = scoreboard.newest([_record('loss_time', 2, 1)])
    self.assertEqual([row.name for row in rows], _NAMES)

  def test_unmeasured_is_null(self):
    rows = scoreboard.newest([_record('loss_time', 2, 1)])
    for row in rows:
      self.assertEqual(row.ours is None, row.name != 'loss_time')
      self.assertEqual(row.met is None, row.name != 'loss_time')

  def test_newest_wins_wherever_it_stands(self):
    old, new = _record('prefill', 1, 1), _record('prefill', 3, 1, '2026-01-02')
    for records in ([old, new], [new, old]):
      self.assertEqual(_of(scoreboard.newest(records), 'prefill').ratio, 3.0)

  def test_of_equal_dates_the_later_one_counts(self):
    records = [_record('prefill', 1, 1), _record('prefill', 3, 1)]
    self.assertEqual(_of(scoreboard.newest(records), 'prefill').ratio, 3.0)


class PublishTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )

  def _append(self, ours, date):
    scoreboard.add_and_publish(
      self.folder / 'kernels',
      [scoreboard.compare('loss_time', ours, 100.0)],
      {'date': date, 'machine': 'any'},
      {'loss_time': 'a note, with a comma'},
    )

  def test_rows_are_added_and_the_newest_published(self):
    self._append(50.0, '2026-01-01')
    self._append(200.0, '2026-01-02')
    with (self.folder / 'kernels.csv').open(newline='') as file:
      records = list(csv.DictReader(file))
    self.assertEqual([x['ours'] for x in records], ['50.0', '200.0'])
    self.assertEqual(records[0]['note'], 'a note, with a comma')
    rows = json.loads((self.folder / 'results.json').read_text())
    self.assertEqual([row['name'] for row in rows], _NAMES)
    self.assertEqual(list(rows[-1]), _FIELDS)
    self.assertEqual((rows[-1]['ratio'], rows[-1]['met']), (0.5, False))
    self.assertIsNone(rows[0]['ratio'])
    self.assertGreater((self.folder / 'benchmarks.png').stat().st_size, 1000)
    self.assertIn('not measured', (self.folder / 'benchmarks.md').read_text())

  def test_nothing_measured_is_published_too(self):
    scoreboard.publish(self.folder)
    rows = json.loads((self.folder / 'results.json').read_text())
    self.assertEqual({row['met'] for row in rows}, {None})


class PublishedTest(absltest.TestCase):
  def test_results_are_those_of_the_csvs(self):
    """Nobody edited the numbers, and no run was forgotten."""
    rows = json.loads((_FOLDER / 'results.json').read_text())
    self.assertEqual([row['name'] for row in rows], _NAMES)
    records = [
      record
      for name in scoreboard.SOURCES
      for record in script.read_rows(_FOLDER / 'results' / name)
    ]
    measured = {record['name'] for record in records}
    for row, newest in zip(rows, scoreboard.newest(records), strict=True):
      self.assertEqual(list(row), _FIELDS)
      self.assertEqual(row, vars(newest))
      self.assertEqual(row['ours'] is not None, row['name'] in measured)


class _FakeChild:
  """Answers at once; a call takes `seconds` and is written down."""

  def __init__(self, name, seconds, calls):
    self._name, self._seconds, self._calls = name, seconds, calls
    self.process = os.getpid()

  def ask(self, command, **arguments):
    self._calls.append((self._name, command, arguments))
    return {'seconds': self._seconds}


class PairTest(absltest.TestCase):
  def test_every_second_round_begins_with_the_other_one(self):
    calls = []
    both = pair.Pair(
      _FakeChild('ours', 0.5, calls), _FakeChild('peer', 1.0, calls)
    )
    asks = [('a', {'x': 1}), ('b', {})]
    samples = both.rounds(100, lambda: asks, 2)
    self.assertGreaterEqual(len(samples.rounds), 2)
    self.assertEqual(
      (samples.rounds[0].ours, samples.rounds[0].peer), (100, 50)
    )
    self.assertEqual(
      [(name, command) for name, command, _ in calls[:8]],
      [(x, c) for x in ('ours', 'peer', 'peer', 'ours') for c in 'ab'],
    )

  def test_only_quiet_rounds_count(self):
    samples = pair.Samples()
    for rate in (1.0, 2.0, 3.0, 4.0):
      samples.add(pair.Round(rate, 1.0, 0.0))
    samples.add(pair.Round(100.0, 1.0, 0.5))
    self.assertIsNone(samples.row('prefill').ratio)
    samples.add(pair.Round(5.0, 1.0, 0.1))
    self.assertEqual(samples.row('prefill').ratio, 3.0)
    self.assertIn('5 of 6 rounds undisturbed', samples.note())


class ChildTest(absltest.TestCase):
  def test_answers_line_by_line_with_our_allocator(self):
    code = (
      'import json, os, sys\n'
      'for line in sys.stdin:\n'
      '  heard = json.loads(line)\n'
      '  heard["tunables"] = os.environ["GLIBC_TUNABLES"]\n'
      '  print(json.dumps(heard), flush=True)\n'
    )
    with asked.Child([sys.executable, '-c', code]) as child:
      answer = child.ask('nothing', tokens=[[1, 2]])
      self.assertEqual(answer['do'], 'nothing')
      self.assertEqual(answer['tokens'], [[1, 2]])
      self.assertEqual(answer['tunables'], asked.ALLOCATOR)

  def test_a_child_that_ended_is_named(self):
    with asked.Child([sys.executable, '-c', 'pass']) as child:  # noqa: SIM117
      with self.assertRaisesRegex(RuntimeError, 'asked to work'):
        child.ask('work')


if __name__ == '__main__':
  absltest.main()
