"""Laws of documents: joined, chosen and cut, no token is lost."""

from absl.testing import absltest, parameterized
import numpy as np

from seekax.data.documents import Chosen, frame, InMemory, Joined, Pieces


def in_memory(lengths) -> InMemory:
  """Documents of the given lengths in which no token stands twice."""
  ends = np.cumsum(lengths)
  tokens = [
    np.arange(end - length, end, dtype=np.int32)
    for length, end in zip(lengths, ends, strict=True)
  ]
  return InMemory(tokens, [f'document {n}' for n in range(len(tokens))])


def read_all(documents) -> list[list[int]]:
  return [documents.read(n).tolist() for n in range(len(documents.lengths))]


class DocumentsTest(absltest.TestCase):
  def test_joined_are_one_after_the_other(self):
    parts = [in_memory((2, 3)), in_memory((1,)), in_memory((4, 0, 5))]
    joined = Joined(parts)
    self.assertEqual(read_all(joined), sum(map(read_all, parts), []))
    self.assertEqual(joined.lengths.tolist(), [2, 3, 1, 4, 0, 5])
    self.assertEqual(joined.name(3), 'document 0')

  def test_chosen_are_those_of_the_numbers(self):
    chosen = Chosen(in_memory((2, 3, 1, 4)), np.array([3, 0]))
    self.assertEqual(read_all(chosen), [[6, 7, 8, 9], [0, 1]])
    self.assertEqual(chosen.lengths.tolist(), [4, 2])
    self.assertEqual(chosen.name(0), 'document 3')

  def test_without_names_numbers_are_names(self):
    self.assertEqual(InMemory([np.zeros(1, np.int32)] * 2).name(1), '1')


class PiecesTest(parameterized.TestCase):
  @parameterized.product(
    lengths=((100,), (1, 1, 50, 1), (7, 8, 9), (3,) * 20, (8, 0)),
    num_shards=(1, 2, 8),
  )
  def test_every_shard_has_a_piece_and_none_is_above_its_share(
    self, lengths, num_shards
  ):
    pieces = Pieces(in_memory(lengths), num_shards)
    tokens = [pieces.read(n) for n in range(len(pieces))]
    np.testing.assert_array_equal(
      np.concatenate(tokens), np.arange(sum(lengths))
    )
    self.assertEqual(pieces.num_tokens, sum(lengths))
    sizes = [len(piece) for piece in tokens if len(piece)]
    self.assertGreaterEqual(len(sizes), num_shards)
    self.assertLessEqual(max(sizes), sum(lengths) // num_shards)
    # Even parts: those of a document differ by one token at most.
    for document in range(len(lengths)):
      parts = [
        len(piece)
        for n, piece in enumerate(tokens)
        if pieces.locate(n)[0] == document
      ]
      self.assertLessEqual(max(parts) - min(parts), 1)

  def test_documents_within_their_share_stay_whole(self):
    pieces = Pieces(in_memory((5, 3, 5, 4, 2, 5)), 4)
    sizes = [len(pieces.read(n)) for n in range(len(pieces))]
    self.assertEqual(sizes, [5, 3, 5, 4, 2, 5])
    self.assertTrue(all(pieces.is_whole(n) for n in range(6)))

  def test_pieces_know_their_document(self):
    pieces = Pieces(in_memory((2, 9, 1)), 4)
    located = [pieces.locate(n) for n in range(len(pieces))]
    self.assertEqual(located, [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)])
    whole = [pieces.is_whole(n) for n in range(len(pieces))]
    self.assertEqual(whole, [True, False, False, False, True])
    self.assertEqual(pieces.name(2), 'document 1, part 2 of 3')
    self.assertEqual(pieces.name(4), 'document 2')
    self.assertTrue(pieces.any_whole())
    self.assertFalse(Pieces(in_memory((9,)), 2).any_whole())


class FrameTest(absltest.TestCase):
  def test_frame_puts_one_token_on_each_side(self):
    framed = frame(np.array([7, 8], np.int32), 0, 1)
    np.testing.assert_array_equal(framed, [0, 7, 8, 1])
    self.assertEqual(framed.dtype, np.int32)


if __name__ == '__main__':
  absltest.main()
