"""Laws of packing: nothing lost, nothing twice, an exact position."""

import json

from absl.testing import absltest, parameterized
import grain
import numpy as np

from seekax.data import packing
from seekax.data.reading_rules import DataError


def _documents(lengths) -> list[np.ndarray]:
  """Documents of the given lengths in which no token stands twice."""
  ends = np.cumsum(lengths)
  return [
    np.arange(end - length, end, dtype=np.int32)
    for length, end in zip(lengths, ends, strict=True)
  ]


def _rows(documents, row_length: int) -> grain.DatasetIterator:
  pieces = [
    document
    if isinstance(document, packing.Piece)
    else packing.Piece(document, source=7, number=number)
    for number, document in enumerate(documents)
  ]
  dataset = grain.MapDataset.source(pieces).to_iter_dataset(
    grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  )
  return iter(packing.PackedIterDataset(dataset, row_length))


_LENGTHS = ((5, 3, 8, 2, 8, 4, 1, 25, 6, 2), (4, 4, 4), (1,) * 9, (40,))


class PackingTest(parameterized.TestCase):
  @parameterized.product(lengths=_LENGTHS, row_length=(1, 4, 7))
  def test_packing_loses_and_duplicates_no_token(self, lengths, row_length):
    rows = list(_rows(_documents(lengths), row_length))
    tokens = np.concatenate([row.tokens_R for row in rows])
    whole_rows = sum(lengths) // row_length
    np.testing.assert_array_equal(tokens, np.arange(whole_rows * row_length))

  @parameterized.product(lengths=_LENGTHS, row_length=(1, 4, 7))
  def test_segments_number_the_documents_of_a_row(self, lengths, row_length):
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for row in _rows(_documents(lengths), row_length):
      self.assertEqual(row.tokens_R.dtype, np.int32)
      self.assertEqual(row.segments_R.dtype, np.int32)
      documents = document_of[row.tokens_R]
      np.testing.assert_array_equal(
        row.segments_R, 1 + documents - documents[0]
      )

  def test_empty_document_is_passed_over(self):
    (row,) = _rows(_documents((0, 2, 0, 2)), 4)
    np.testing.assert_array_equal(row.tokens_R, [0, 1, 2, 3])
    self.assertEqual(row.segments_R[0], row.segments_R[1])
    self.assertGreater(row.segments_R[2], row.segments_R[1])

  @parameterized.product(lengths=_LENGTHS, row_length=(1, 4, 7))
  def test_state_restores_the_next_row_from_any_place(
    self, lengths, row_length
  ):
    documents = _documents(lengths)
    iterator = _rows(documents, row_length)
    states, rows = [], []
    while True:
      states.append(json.dumps(iterator.get_state()))
      try:
        rows.append(next(iterator))
      except StopIteration:
        break
    for start, state in enumerate(states):
      for used in (0, 1):
        other = _rows(documents, row_length)
        for _ in range(min(used, len(rows))):
          next(other)
        other.set_state(json.loads(state))
        self.assertEqual(json.dumps(other.get_state()), state)
        rest = list(other)
        self.assertLen(rest, len(rows) - start)
        for ours, expected in zip(rest, rows[start:], strict=True):
          np.testing.assert_array_equal(ours.tokens_R, expected.tokens_R)
          np.testing.assert_array_equal(ours.segments_R, expected.segments_R)

  def test_state_behind_the_end_of_a_changed_document_ends(self):
    iterator = _rows(_documents((3, 9)), 4)
    iterator.set_state(
      {'before_document': {'next_index': 0}, 'offset': 50, 'skipped': 0}
    )
    np.testing.assert_array_equal(next(iterator).tokens_R, [3, 4, 5, 6])

  @parameterized.product(lengths=_LENGTHS, row_length=(1, 4, 7))
  def test_a_row_knows_its_documents(self, lengths, row_length):
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for row in _rows(_documents(lengths), row_length):
      self.assertEqual(
        row.pieces, tuple((7, n) for n in np.unique(document_of[row.tokens_R]))
      )

  @parameterized.product(lengths=_LENGTHS, row_length=(4, 7))
  def test_rows_equal_those_of_grain(self, lengths, row_length):
    documents = _documents(lengths)
    dataset = grain.MapDataset.source(
      [{'tokens': document} for document in documents]
    ).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    grains = grain.experimental.ConcatThenSplitIterDataset(
      dataset, length_struct={'tokens': row_length}
    )
    # Ours drops the last row if it is incomplete: zip cuts it off.
    for ours, theirs in zip(_rows(documents, row_length), grains, strict=False):
      np.testing.assert_array_equal(ours.tokens_R, theirs['tokens'])
      np.testing.assert_array_equal(
        ours.segments_R, theirs['tokens_segment_ids']
      )


class CorruptTest(parameterized.TestCase):
  def rows(self) -> grain.DatasetIterator:
    bad = packing.Piece(np.zeros(0, np.int32), corrupt='shard 3, record 5')
    one, two, three = _documents((3, 9, 8))
    return _rows([bad, one, bad, bad, two, bad, three], 4)

  def test_corrupt_pieces_are_passed_over_named_and_counted(self):
    iterator = self.rows()
    with self.assertLogs(packing.__name__, 'WARNING') as logs:
      rows = list(iterator)
    self.assertLen(logs.output, 4)
    self.assertIn('shard 3, record 5', logs.output[0])
    tokens = np.concatenate([row.tokens_R for row in rows])
    np.testing.assert_array_equal(tokens, np.arange(20))
    np.testing.assert_array_equal(rows[0].segments_R, [1, 1, 1, 2])
    self.assertEqual(iterator.get_state()['skipped'], 4)

  @parameterized.parameters(0, 1, 2, 3, 4)
  def test_the_count_is_part_of_the_state(self, start):
    iterator = self.rows()
    for _ in range(start):
      next(iterator)
    state = json.dumps(iterator.get_state())
    expected = [row.tokens_R.tolist() for row in iterator]
    fresh = self.rows()
    fresh.set_state(json.loads(state))
    self.assertEqual([row.tokens_R.tolist() for row in fresh], expected)
    self.assertEqual(fresh.get_state()['skipped'], 4)

  def test_a_piece_that_turned_corrupt_meanwhile_is_passed_over(self):
    one, two = _documents((9, 8))
    iterator = _rows([one, two], 4)
    next(iterator)
    state = iterator.get_state()
    self.assertEqual(state['offset'], 4)
    bad = packing.Piece(np.zeros(0, np.int32), corrupt='record 0')
    other = _rows([bad, two], 4)
    with self.assertLogs(packing.__name__, 'WARNING'):
      other.set_state(state)
    self.assertEqual(next(other).tokens_R.tolist(), [9, 10, 11, 12])

  def test_nothing_but_corrupt_pieces_is_an_error_not_a_loop(self):
    bad = packing.Piece(np.zeros(0, np.int32), corrupt='record 5')
    with (
      self.assertLogs(packing.__name__, 'WARNING'),
      self.assertRaisesRegex(DataError, 'in a row, the last: record 5'),
    ):
      next(_rows([bad] * 1001, 4))


if __name__ == '__main__':
  absltest.main()
