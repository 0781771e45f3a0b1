"""Laws of a shard's order: what happens to a document knows no shard."""

from absl.testing import absltest, parameterized
import numpy as np

from seekax.configuration.data import DataConfig
from seekax.data.documents import InMemory, Pieces
from seekax.data.order import ShardOrder
from seekax.data.shards import CorruptRecordError

_SIZES = (12, 30)


class Torn(InMemory):
  """Documents of which number 3 can't be read."""

  def read(self, number: int) -> np.ndarray:
    if number == 3:
      raise CorruptRecordError('record 3 is corrupt')
    return super().read(number)


def orders(num_shards, kind=InMemory, augment=None, **config):
  """One order per shard over two sources of documents of equal length."""
  documents = [
    kind([np.full(9, 100 * s + n, np.int32) for n in range(size)])
    for s, size in enumerate(_SIZES)
  ]
  pieces = [Pieces(d, num_shards=1) for d in documents]
  config = DataConfig(num_shards=num_shards, batch_size=num_shards, **config)
  augment = augment or (lambda tokens, *_: tokens)
  return [
    ShardOrder(pieces, [0.4, 0.6], config, augment, shard)
    for shard in range(num_shards)
  ]


class OrderTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_augmentation_sees_the_same_documents_in_every_number_of_shards(
    self, num_shards
  ):
    calls = []

    def augment(tokens, is_whole, *place):
      self.assertTrue(is_whole)
      source, document, part, epoch = place
      self.assertEqual((tokens[0], part), (100 * source + document, 0))
      calls.append((source, document, epoch))
      return tokens

    for order in orders(num_shards, augment=augment):
      for position in range(400 // num_shards):
        order[position]
    self.assertLen(set(calls), len(calls))
    # All of the early epochs, whatever the number of shards.
    for source, size in enumerate(_SIZES):
      for epoch in range(5):
        seen = {n for s, n, e in calls if (s, e) == (source, epoch)}
        self.assertEqual(seen, set(range(size)))

  def test_any_position_is_read_alone(self):
    (order,) = orders(1)
    row = [order[position] for position in range(50)]
    for position in (49, 3, 17):
      (fresh,) = orders(1)
      self.assertEqual(fresh[position].number, row[position].number)
      self.assertEqual(fresh[position].source, row[position].source)

  def test_sources_are_shuffled_apart(self):
    (order,) = orders(1)
    pieces = [order[position] for position in range(60)]
    firsts = [
      [p.number for p in pieces if p.source == source][:12] for source in (0, 1)
    ]
    self.assertCountEqual(firsts[0], range(12))
    self.assertNotEqual(*firsts)

  def test_a_corrupt_record_is_raised_or_handed_on_as_such(self):
    (order,) = orders(1, Torn)
    with self.assertRaisesRegex(CorruptRecordError, 'record 3'):
      for position in range(100):
        order[position]
    (order,) = orders(1, Torn, skip_corrupt=True)
    pieces = [order[position] for position in range(100)]
    corrupt = [piece for piece in pieces if piece.corrupt]
    self.assertEqual({piece.number for piece in corrupt}, {3})
    self.assertEqual({piece.source for piece in corrupt}, {0, 1})
    self.assertEqual({len(piece.tokens) for piece in corrupt}, {0})


if __name__ == '__main__':
  absltest.main()
