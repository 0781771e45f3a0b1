import operator
import pathlib
import threading
from unittest import mock

from absl.testing import absltest
import numpy as np

from seekax.configuration.data import DataConfig
from seekax.data import pipeline
from seekax.data.sources import DataError
from seekax.runs import launch
from seekax.runs.prefetch import Prefetcher
import short_runs


class Numbers:
  """A source of 1, 2, 3, ... that says how far it was read."""

  def __init__(self, fails_at: int = 0, waits_at: int = 0):
    self.read = 0
    self.made = threading.Semaphore(0)
    self.go_on = threading.Event()
    self._fails_at, self._waits_at = fails_at, waits_at

  def __next__(self) -> int:
    if self.read + 1 == self._fails_at:
      raise DataError('the file is gone')
    if self.read + 1 == self._waits_at:
      self.go_on.wait()
    self.read += 1
    self.made.release()
    return self.read

  def take(self, size: int) -> tuple[int, int]:
    return next(self), size

  def get_state(self):
    return {'read': self.read}

  def records(self):
    return f'records of {self.read}'

  def skipped(self):
    return 10 * self.read


def own_threads() -> list[str]:
  return [
    thread.name
    for thread in threading.enumerate()
    if thread.name.startswith('prefetch')
  ]


class PrefetcherTest(absltest.TestCase):
  def prefetcher(self, source, count: int = 100) -> Prefetcher:
    prefetcher = Prefetcher(source, lambda batch: batch, count)
    self.addCleanup(prefetcher.close)
    return prefetcher

  def test_it_gives_what_the_source_gives_placed(self):
    prefetcher = Prefetcher(Numbers(), operator.neg, 5)
    self.assertEqual(list(prefetcher), [-1, -2, -3, -4, -5])
    prefetcher.close()

  def test_it_reads_one_ahead_without_being_asked(self):
    source = Numbers()
    prefetcher = self.prefetcher(source)
    for ahead in (1, 2, 3):
      self.assertTrue(source.made.acquire(timeout=10))
      self.assertEqual(source.read, ahead)
      self.assertEqual(next(prefetcher), ahead)

  def test_its_position_is_that_of_the_last_batch_handed_out(self):
    source = Numbers()
    prefetcher = self.prefetcher(source)
    for read in range(4):
      source.made.acquire(timeout=10)
      self.assertEqual(source.read, read + 1)
      self.assertEqual(prefetcher.get_state(), {'read': read})
      next(prefetcher)

  def test_nothing_is_read_beyond_the_last_batch(self):
    source = Numbers()
    self.assertEqual(list(self.prefetcher(source, 3)), [1, 2, 3])
    self.assertEqual(source.read, 3)
    self.assertEmpty(list(self.prefetcher(Numbers(), 0)))

  def test_an_error_comes_with_its_batch_and_again(self):
    prefetcher = self.prefetcher(Numbers(fails_at=3))
    self.assertEqual([next(prefetcher), next(prefetcher)], [1, 2])
    for _ in range(2):
      with self.assertRaisesRegex(DataError, 'the file is gone'):
        next(prefetcher)
    self.assertEqual(prefetcher.get_state(), {'read': 2})

  def test_closing_leaves_no_thread(self):
    for source in (Numbers(), Numbers(fails_at=1), Numbers(waits_at=1)):
      prefetcher = self.prefetcher(source)
      self.assertLen(own_threads(), 1)
      source.go_on.set()
      prefetcher.close()
      self.assertEmpty(own_threads())
      prefetcher.close()

  def test_going_on_from_its_position_misses_no_batch(self):
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, 99, 40, np.int32) for _ in range(50)]
    config = DataConfig(sequence_length=16, batch_size=4, num_shards=2)

    def start():
      return pipeline.batches(documents, config)

    plain = start()
    expected = [next(plain).tokens_BL for _ in range(12)]
    first = self.prefetcher(start())
    for batch in expected[:5]:
      np.testing.assert_array_equal(next(first).tokens_BL, batch)
    state = first.get_state()
    next(first)
    second = start()
    second.set_state(state)
    prefetcher = self.prefetcher(second)
    for batch in expected[5:]:
      np.testing.assert_array_equal(next(prefetcher).tokens_BL, batch)

  def test_records_and_skipped_are_those_of_the_last_batch_handed_out(self):
    source = Numbers()
    prefetcher = self.prefetcher(source)
    for read in range(4):
      source.made.acquire(timeout=10)
      self.assertEqual(prefetcher.records(), f'records of {read}')
      self.assertEqual(prefetcher.skipped(), 10 * read)
      next(prefetcher)

  def test_sizes_are_those_of_the_coming_batches(self):
    prefetcher = Prefetcher(Numbers(), lambda batch: batch, 3, sizes=[4, 2, 9])
    self.assertEqual(list(prefetcher), [(1, 4), (2, 2), (3, 9)])
    prefetcher.close()

  def test_waiting_is_measured_and_reading_ahead_is_not(self):
    source = Numbers(waits_at=2)
    prefetcher = self.prefetcher(source, 3)
    source.made.acquire(timeout=10)
    next(prefetcher)
    before = prefetcher.waited()
    threading.Timer(0.2, source.go_on.set).start()
    next(prefetcher)
    self.assertBetween(prefetcher.waited() - before, 0.1, 5)
    source.made.acquire(timeout=10)
    source.made.acquire(timeout=10)
    after = prefetcher.waited()
    next(prefetcher)
    self.assertLess(prefetcher.waited() - after, 0.1)


class RampTest(absltest.TestCase):
  config = DataConfig(sequence_length=16, batch_size=4, num_shards=2)
  sizes, parts = (1, 1, 2, 4, 4, 6), (1, 1, 2, 4, 4, 6)

  def start(self) -> pipeline.BatchIterator:
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, 99, 40, np.int32) for _ in range(50)]
    return pipeline.batches(documents, self.config)

  def ramp(self, source, start: int) -> Prefetcher:
    prefetcher = Prefetcher(
      source,
      lambda batch: batch,
      len(self.sizes) - start,
      sizes=self.sizes[start:],
      parts=self.parts[start:],
    )
    self.addCleanup(prefetcher.close)
    return prefetcher

  def test_a_batch_comes_in_micro_batches_of_fixed_rows(self):
    whole = self.start()
    prefetcher = self.ramp(self.start(), 0)
    for size, parts in zip(self.sizes, self.parts, strict=True):
      expected, made = whole.take(size), next(prefetcher)
      self.assertLen(made, parts)
      for part, micro in enumerate(made):
        self.assertLen(micro.tokens_BL, 2)
        np.testing.assert_array_equal(
          micro.tokens_BL, expected.tokens_BL[part::parts]
        )

  def test_going_on_in_the_middle_of_the_ramp_misses_nothing(self):
    unbroken = list(self.ramp(self.start(), 0))
    first = self.ramp(self.start(), 0)
    for _ in range(3):
      next(first)
    source = self.start()
    source.set_state(first.get_state())
    for made, expected in zip(self.ramp(source, 3), unbroken[3:], strict=True):
      for one, other in zip(made, expected, strict=True):
        np.testing.assert_array_equal(one.tokens_BL, other.tokens_BL)


class LoopTest(absltest.TestCase):
  def test_an_error_in_the_data_ends_a_run_without_a_thread(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    config = short_runs.small_config(
      short_runs.write_corpus(workdir / 'corpus')
    )
    with (
      mock.patch.object(
        pipeline.BatchIterator, 'take', side_effect=DataError('unreadable')
      ),
      self.assertRaisesRegex(DataError, 'unreadable'),
    ):
      launch.start(config, {}, workdir)
    self.assertEmpty(own_threads())


if __name__ == '__main__':
  absltest.main()
