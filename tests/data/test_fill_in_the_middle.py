"""Laws of fill-in-the-middle: the order of the parts, nothing lost."""

from absl.testing import absltest, parameterized
import numpy as np

from seekax.data import tokenizer as tokenizer_lib
from seekax.data import tokenizer_training
from seekax.data.documents import frame
from seekax.data.fill_in_the_middle import fill_in_the_middle, require_tokens
from seekax.data.reading_rules import DataError

_TEXT = 'def f(x):\n  return x + 1  # plus one é\n'


class FillInTheMiddleTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = tokenizer_training.train(
      [_TEXT] * 9, 300, tokenizer_lib.FIM
    )
    cls.framed = frame(cls.tokenizer.encode(_TEXT), 0, 1)

  def parts(self, draws) -> list[str]:
    """Prefix, suffix and middle, by the special tokens between them."""
    tokens = fill_in_the_middle(self.framed, self.tokenizer, draws)
    self.assertEqual(tokens.dtype, np.int32)
    begin, hole, end = self.tokenizer.fim_ids
    self.assertEqual(tokens[:2].tolist(), [self.tokenizer.bos_id, begin])
    self.assertEqual(tokens[-1], self.tokenizer.eos_id)
    (hole_at,), (end_at,) = (np.flatnonzero(tokens == i) for i in (hole, end))
    self.assertLess(hole_at, end_at)
    cuts = (
      tokens[2:hole_at],
      tokens[hole_at + 1 : end_at],
      tokens[end_at + 1 : -1],
    )
    return [self.tokenizer.decode(cut) for cut in cuts]

  @parameterized.product(
    first=(0.0, 0.2, 0.5, 0.77, 0.999999), second=(0.0, 0.31, 0.5, 0.999999)
  )
  def test_prefix_suffix_middle_make_the_document(self, first, second):
    prefix, suffix, middle = self.parts((first, second))
    self.assertEqual(prefix + middle + suffix, _TEXT)
    low, high = sorted((first, second))
    self.assertLen(prefix, int(low * (len(_TEXT) + 1)))
    self.assertLen(prefix + middle, int(high * (len(_TEXT) + 1)))

  def test_cuts_fall_inside_tokens_too(self):
    inside = 0
    whole = len(self.framed) - 2
    for n in range(len(_TEXT)):
      prefix = _TEXT[:n]
      pieces = self.tokenizer.encode_many([prefix, _TEXT[n:]])
      inside += sum(map(len, pieces)) > whole
    self.assertGreater(inside, 3)

  def test_an_empty_document_is_three_empty_parts(self):
    empty = frame(np.zeros(0, np.int32), 0, 1)
    tokens = fill_in_the_middle(empty, self.tokenizer, (0.3, 0.9))
    self.assertEqual(tokens.tolist(), [0, *self.tokenizer.fim_ids, 1])

  def test_a_tokenizer_without_the_tokens_is_refused(self):
    require_tokens(self.tokenizer)
    with self.assertRaisesRegex(DataError, 'set data.fim_rate=0'):
      require_tokens(tokenizer_training.train([_TEXT], 300))

  def test_text_that_spells_the_tokens_stays_text(self):
    text = 'a <|fim_hole|> b'
    framed = frame(self.tokenizer.encode(text), 0, 1)
    tokens = fill_in_the_middle(framed, self.tokenizer, (0.0, 0.999999))
    self.assertEqual((tokens == self.tokenizer.fim_ids[1]).sum(), 1)


if __name__ == '__main__':
  absltest.main()
