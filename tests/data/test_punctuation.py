"""Laws of punctuation: merged tokens come apart, the text stays."""

import json

from absl.testing import absltest
import numpy as np

from seekax.data import tokenizer as tokenizer_lib
from seekax.data import tokenizer_training
from seekax.data.punctuation import PunctuationSplitter

_TEXT = 'if x:\n  f(x)\n  g(y);\r\n\nelse:\n  h("a", 1)\n'


class PunctuationTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = tokenizer_training.train([_TEXT] * 20, 320)
    cls.splitter = PunctuationSplitter(cls.tokenizer)
    cls.tokens = cls.tokenizer.encode(_TEXT)

  def words(self, tokens) -> list[str]:
    return [self.tokenizer.decode([t]) for t in tokens]

  def test_merged_tokens_are_punctuation_and_line_ends(self):
    expected = [':\n', ')\n', ');\r\n\n', ':\n', '")\n']
    merged = [w for w in self.words(self.tokens) if w.strip() and '\n' in w]
    self.assertContainsSubset(merged, expected)
    self.assertGreater(len(merged), 2)
    self.assertEqual(self.splitter.count(self.tokens), len(merged))

  def test_all_come_apart_and_the_text_stays(self):
    count = self.splitter.count(self.tokens)
    tokens = self.splitter.split(self.tokens, np.ones(count, bool))
    self.assertEqual(self.splitter.count(tokens), 0)
    self.assertEqual(self.tokenizer.decode(tokens), _TEXT)
    self.assertGreaterEqual(len(tokens), len(self.tokens) + count)
    self.assertEqual(tokens.dtype, np.int32)

  def test_only_the_chosen_come_apart(self):
    count = self.splitter.count(self.tokens)
    chosen = np.arange(count) == 1
    tokens = self.splitter.split(self.tokens, chosen)
    self.assertEqual(self.splitter.count(tokens), count - 1)
    self.assertEqual(self.tokenizer.decode(tokens), _TEXT)
    none = self.splitter.split(self.tokens, np.zeros(count, bool))
    np.testing.assert_array_equal(none, self.tokens)

  def test_half_a_character_is_left_alone(self):
    # Of two bytes: the second half of é, and the line end after it.
    definition = json.loads(self.tokenizer.to_json())
    model = definition['model']
    new_id = max(model['vocab'].values()) + 1
    model['vocab']['\u00a9\u010a'] = new_id
    model['merges'].append(['\u00a9', '\u010a'])
    tokenizer = tokenizer_lib.Tokenizer(json.dumps(definition))
    self.assertEqual(tokenizer.decode([new_id]), '\ufffd\n')
    splitter = PunctuationSplitter(tokenizer)
    self.assertEqual(splitter.count(np.array([new_id])), 0)
    self.assertEqual(
      splitter.count(self.tokens), self.splitter.count(self.tokens)
    )

  def test_control_tokens_are_never_merged(self):
    framed = np.array([0, 1], np.int32)
    self.assertEqual(self.splitter.count(framed), 0)


if __name__ == '__main__':
  absltest.main()
