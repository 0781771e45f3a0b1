"""What a tokenizer.json of a stranger can do, and what is said of it."""

import base64
import json
import pathlib
import time
from unittest import mock

from absl.testing import absltest, parameterized

from seekax.data import foreign_tokenizer, tokenizer_files
from seekax.data import tokenizer as tokenizer_lib
from seekax.data.reading_rules import DataError


def _definition(model: dict, **more) -> str:
  controls = [
    {
      'id': number,
      'content': name,
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': True,
    }
    for number, name in enumerate(('<|bos|>', '<|eos|>'))
  ]
  return json.dumps(
    {
      'version': '1.0',
      'truncation': None,
      'padding': None,
      'added_tokens': controls,
      'normalizer': None,
      'pre_tokenizer': None,
      'post_processor': None,
      'decoder': None,
      'model': model,
      **more,
    }
  )


_VOCABULARY = {'<|bos|>': 0, '<|eos|>': 1, 'a': 2}
_WORD_LEVEL = {'type': 'WordLevel', 'vocab': _VOCABULARY, 'unk_token': '?'}
_WORD_PIECE = {
  'type': 'WordPiece',
  'vocab': _VOCABULARY,
  'unk_token': '?',
  'continuing_subword_prefix': '##',
  'max_input_chars_per_word': 9,
}
_UNIGRAM = {
  'type': 'Unigram',
  'vocab': [[name, -1.0] for name in _VOCABULARY],
  'unk_id': None,
}
_BPE = {
  'type': 'BPE',
  'vocab': _VOCABULARY,
  'merges': [],
  'unk_token': '?',
}


def _replace(pattern: str, content: str) -> dict:
  return {'type': 'Replace', 'pattern': {'String': pattern}, 'content': content}


class ForeignTokenizerTest(parameterized.TestCase):
  def load(self, source: str) -> tokenizer_lib.Tokenizer:
    path = pathlib.Path(self.create_tempfile('tokenizer.json').full_path)
    path.write_text(source)
    return tokenizer_files.load(path)

  @parameterized.parameters(_WORD_LEVEL, _WORD_PIECE, _UNIGRAM, _BPE)
  def test_a_model_without_its_unknown_token_fails_in_words(self, **model):
    try:
      tokenizer = self.load(_definition(model))
      tokenizer.encode('a text of words that it does not know \u4e2d')
    except DataError as error:
      self.assertLess(len(str(error)), 500)

  @parameterized.parameters(
    dict(normalizer={'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'}),
    dict(
      normalizer={
        'type': 'Precompiled',
        'precompiled_charsmap': base64.b64encode(bytes(range(256))).decode(),
      }
    ),
    dict(
      pre_tokenizer={
        'type': 'Split',
        'pattern': {'Regex': ''},
        'behavior': 'Isolated',
        'invert': False,
      }
    ),
    dict(normalizer=_replace('', 'x')),
    dict(normalizer=_replace('a', 'a' * 100_000)),
    dict(
      normalizer={
        'type': 'Sequence',
        'normalizers': [_replace('a', 'a' * 10)] * 8,
      }
    ),
  )
  def test_what_makes_the_library_fail_is_refused_in_words(self, **part):
    start = time.monotonic()
    try:
      tokenizer = self.load(_definition(_BPE | {'unk_token': 'a'}, **part))
      # If it is taken it must be of use.
      self.assertLess(len(tokenizer.encode('a banana ' * 99)), 99_999)
    except DataError as error:
      self.assertLess(len(str(error)), 500)
      self.assertNotIn('\n', str(error))
    self.assertLess(time.monotonic() - start, 20)

  def test_growth_is_reckoned_before_anything_is_normalized(self):
    ten = _replace('a', 'a' * 10)
    for count, fits in ((1, True), (2, False)):
      part = {'type': 'Sequence', 'normalizers': [ten] * count}
      source = _definition(_BPE, normalizer=part)
      if fits:
        foreign_tokenizer.refuse_growth(source)
      else:
        with self.assertRaisesRegex(DataError, 'may make 100 characters of'):
          foreign_tokenizer.refuse_growth(source)

  def test_a_panic_is_named(self):
    part = {'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'}
    source = _definition(_BPE | {'unk_token': 'a'}, normalizer=part)
    with self.assertRaisesRegex(DataError, 'makes the library .* panic'):
      foreign_tokenizer.check(source, None)

  def test_what_takes_too_long_is_ended(self):
    source = _definition(_BPE | {'unk_token': 'a'})
    foreign_tokenizer.check(source, None)
    with (
      mock.patch.object(foreign_tokenizer, '_SECONDS', 0.001),
      self.assertRaisesRegex(DataError, 'takes longer than'),
    ):
      foreign_tokenizer.check(source, None)

  def test_a_sound_one_is_tried_once(self):
    source = _definition(_BPE | {'unk_token': 'a'})
    cache = pathlib.Path(self.create_tempdir().full_path)
    foreign_tokenizer.check(source, cache)
    with mock.patch.object(foreign_tokenizer, '_try') as tried:
      foreign_tokenizer.check(source, cache)
    tried.assert_not_called()


if __name__ == '__main__':
  absltest.main()
