"""Laws of long texts: pieces have the tokens of the whole, and are short."""

import random
import time
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from seekax.data import long_text, tokenizer_training
from seekax.data import tokenizer as tokenizer_lib
from seekax.data.reading_rules import DataError

_TEXT = (
  'the of and whole naïve Straße return self.children import x_1 foo() a I '
  'don\'t we\'ll 3.14 1234567 -- ... != == => ,;: "quoted" (brackets) 漢字 '
  'かな。次の文、 Привет мир, ελληνικά हिन्दी e\u0301a\u0300 🙂🙃 ﬁne Ⅷ ½ '
  '</s> <|bos|> [SEP] ▁ <unk> ĠĠ'
)
_WORDS = _TEXT.split(' ')
_BLANKS = (' ', ' ', ' ', ' ', '\n', '  ', '\n\n', '\r\n', '\t', ' \n  ')
_BLANKS += ('', '\u00a0', '\u3000', '.\n', '. ')
# The words of GPT-4 and of DeepSeek-V3.
_GPT4 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_DEEPSEEK = (
  r'\p{N}{1,3}',
  r'[一-龥぀-ゟ゠-ヿ]+',
  r'[!"#$%&\'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?'
  r'[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+',
)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def random_text(rng: random.Random, words: int) -> str:
  return ''.join(rng.choice(_WORDS) + rng.choice(_BLANKS) for _ in range(words))


def _split(*patterns: str) -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [
      *(
        pre_tokenizers.Split(tokenizers.Regex(p), 'isolated') for p in patterns
      ),
      _BYTES,
    ]
  )


def _metaspace(scheme: str) -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Metaspace(prepend_scheme=scheme)


def _bpe(pre_tokenizer, normalizer=None) -> tokenizers.Tokenizer:
  tokenizer = tokenizers.Tokenizer(
    models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=True)
  )
  if normalizer is not None:
    tokenizer.normalizer = normalizer
  if pre_tokenizer is not None:
    tokenizer.pre_tokenizer = pre_tokenizer
  return tokenizer


def _llama2() -> tokenizers.Tokenizer:
  """All of a text is one word, with a blank put before it."""
  steps = [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  return _bpe(None, normalizers.Sequence(steps))


def _wordpiece() -> tokenizers.Tokenizer:
  tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token='<unk>'))
  tokenizer.normalizer = normalizers.BertNormalizer()
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  return tokenizer


def _unigram() -> tokenizers.Tokenizer:
  tokenizer = tokenizers.Tokenizer(models.Unigram())
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(' {2,}'), ' ')]
  )
  tokenizer.pre_tokenizer = _metaspace('always')
  return tokenizer


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=True)
_KINDS = {
  'gpt2': lambda: _bpe(_GPT2),
  'gpt4': lambda: _bpe(_split(_GPT4)),
  'deepseek': lambda: _bpe(_split(*_DEEPSEEK)),
  'normalized': lambda: _bpe(_split(_GPT4), normalizers.NFC()),
  'metaspace': lambda: _bpe(_metaspace('always')),
  'metaspace_first': lambda: _bpe(_metaspace('first')),
  'llama2': _llama2,
  'wordpiece': _wordpiece,
  'unigram': _unigram,
}
_TRAINERS = {
  models.BPE: trainers.BpeTrainer,
  models.WordPiece: trainers.WordPieceTrainer,
  models.Unigram: trainers.UnigramTrainer,
}


def tokenizer_of(kind: str) -> tokenizer_lib.Tokenizer:
  """A tokenizer trained on random text of the kind that it is tried on."""
  texts = [random_text(random.Random(n), 40) for n in range(60)]
  if kind == 'own':
    return tokenizer_training.train(texts, 700)
  tokenizer = _KINDS[kind]()
  options = {'unk_token': '<unk>'} if kind == 'unigram' else {}
  trainer = _TRAINERS[type(tokenizer.model)](
    vocab_size=700,
    special_tokens=['<unk>', '<s>', '</s>', '[SEP]'],
    show_progress=False,
    **options,
  )
  if kind == 'llama2':  # Words joined across blanks are never learnt there.
    tokenizer.pre_tokenizer = pre_tokenizers.Split('▁', 'merged_with_next')
  tokenizer.train_from_iterator(texts, trainer)
  if kind == 'llama2':
    source = tokenizer.to_str()
    tokenizer = tokenizers.Tokenizer.from_str(source)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
  tokenizer.add_tokens(['...', '    '])
  return tokenizer_lib.Tokenizer(tokenizer.to_str())


class PiecesTest(parameterized.TestCase):
  @parameterized.parameters('own', *_KINDS)
  def test_pieces_have_the_tokens_that_the_library_gives_the_whole(self, kind):
    tokenizer, rng = tokenizer_of(kind), random.Random(kind)
    texts = [random_text(rng, rng.randrange(60, 150)) for _ in range(100)]
    whole = tokenizer._encode_batch(texts)
    with mock.patch.multiple(long_text, SIZE=150, _CONTEXT=40):
      cut = tokenizer.encode_many(texts)
      pieces = [len(list(tokenizer._pieces([text]))) for text in texts]
    for text, expected, ids in zip(texts, whole, cut, strict=True):
      np.testing.assert_array_equal(ids, expected, err_msg=repr(text))
    self.assertGreater(sum(pieces), 3 * len(texts))

  def test_a_tokenizer_learns_the_same_from_pieces(self):
    text = random_text(random.Random(0), 2000)
    whole = tokenizer_training.train([text], 500).to_json()
    with mock.patch.multiple(long_text, SIZE=150, _CONTEXT=40):
      self.assertEqual(tokenizer_training.train([text], 500).to_json(), whole)

  def test_short_texts_are_not_asked_about(self):
    self.assertEqual(list(long_text.cut('a b', self.fail)), ['a b'])
    self.assertEqual(list(long_text.cut('', self.fail)), [''])

  def test_a_tokenizer_that_joins_everything_gets_it_whole_or_refuses(self):
    with mock.patch.multiple(long_text, SIZE=10, _LARGEST=100):
      never = mock.Mock(return_value=False)
      text = 'some words ' * 5
      self.assertEqual(list(long_text.cut(text, never)), [text])
      with self.assertRaisesRegex(DataError, 'joins words across blanks'):
        list(long_text.cut(text * 9, never))


class RunTest(parameterized.TestCase):
  @parameterized.parameters('a', ' ', '7', '-', '\n', '\u6f22', '🙂', '\u0301')
  def test_a_run_of_one_kind_is_cut_at_a_fixed_length(self, character):
    tokenizer = tokenizer_of('own')
    run = character * 350
    with mock.patch.object(long_text, 'SIZE', 100):
      ids = tokenizer.encode(run)
      pieces = [piece for _, piece in tokenizer._pieces([run])]
    self.assertEqual([len(piece) for piece in pieces], [100, 100, 100, 50])
    parts = [tokenizer.encode(piece) for piece in pieces]
    np.testing.assert_array_equal(ids, np.concatenate(parts))
    self.assertEqual(tokenizer.decode(ids), run)

  def test_words_beside_a_run_keep_their_tokens(self):
    tokenizer = tokenizer_of('own')
    text = 'self.children = ' + 'x' * 350 + ' whole words'
    with mock.patch.object(long_text, 'SIZE', 100):
      pieces = [piece for _, piece in tokenizer._pieces([text])]
    self.assertEqual(''.join(pieces), text)
    self.assertEqual(pieces[:2], ['self.children', ' ='])
    self.assertEndsWith(pieces[-1], 'x whole words')
    self.assertLessEqual(max(map(len, pieces)), 100)

  def test_time_grows_with_the_length_alone(self):
    tokenizer = tokenizer_of('own')
    seconds = []
    for size in (1, 4):
      start = time.monotonic()
      tokenizer.encode(' ' * (size << 17))
      seconds.append(time.monotonic() - start)
    self.assertLess(seconds[1], 16 * seconds[0])


if __name__ == '__main__':
  absltest.main()
