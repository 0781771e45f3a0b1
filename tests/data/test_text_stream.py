"""Text that comes in pieces is the text of the whole, for every decoder."""

import random

from absl.testing import absltest, parameterized
import tokenizers
from tokenizers import decoders, models

from seekax.data import tokenizer_training
from seekax.data.text_stream import stream

_CONTROLS = ['<|bos|>', '<|eos|>', '<unk>']
_BYTES = [f'<0x{n:02X}>' for n in range(256)]
_WORDS = ['▁', '▁the', 'the', '▁a', 'b', '##s', '##ing', '.', "n't", ' x', 'é']
_WORDS += ['中', '\ufffd', '▁▁', 'go</w>', 'od</w>', '\n', 'not', 'do']


def _with(model, decoder) -> tokenizers.Tokenizer:
  made = tokenizers.Tokenizer(model)
  made.decoder = decoder
  made.add_special_tokens(_CONTROLS)
  return made


def _vocabulary(words) -> dict[str, int]:
  return {word: n for n, word in enumerate([*_CONTROLS, *words])}


def _byte_level() -> tokenizers.Tokenizer:
  trained = tokenizer_training.train(
    ['def f(x):\n  return "中文 é 🎉"\n'] * 9, 300
  )
  return tokenizers.Tokenizer.from_str(trained.to_json())


_LLAMA = decoders.Sequence(
  [
    decoders.Replace('▁', ' '),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(' ', 1, 0),
  ]
)
_WORD_LEVEL = models.WordLevel(_vocabulary(_BYTES + _WORDS), '<unk>')
_KINDS = {
  'byte_level': _byte_level,
  'byte_fallback': lambda: _with(_WORD_LEVEL, _LLAMA),
  'metaspace': lambda: _with(_WORD_LEVEL, decoders.Metaspace()),
  'word_piece': lambda: _with(_WORD_LEVEL, decoders.WordPiece()),
  'suffix': lambda: _with(_WORD_LEVEL, decoders.BPEDecoder()),
  'unigram': lambda: _with(
    models.Unigram([(w, -1.0) for w in _vocabulary(_BYTES + _WORDS)], 2, True),
    _LLAMA,
  ),
  'none': lambda: tokenizers.Tokenizer(_WORD_LEVEL),
}


class TextStreamTest(parameterized.TestCase):
  @parameterized.parameters(*_KINDS)
  def test_pieces_joined_are_the_whole(self, kind):
    made = _KINDS[kind]()
    names = {n: made.id_to_token(n) for n in range(made.get_vocab_size())}
    skipped = {n for n, name in names.items() if name in _CONTROLS}
    skipped = {n for n in skipped if not made.decode([n])}
    in_bytes = {n for n, name in names.items() if name in _BYTES}
    draw = random.Random(0)
    pieces_seen = 0
    for trial in range(1500):
      # Most are short; some are longer than the window that is decoded anew.
      length = draw.choice((1, 3, 8, 20)) if trial % 10 else 300
      few = draw.sample(sorted(names), min(len(names), 12))
      pool = sorted(names) if trial % 2 else few
      ids = [draw.choice(pool) for _ in range(length)]
      if trial % 3 == 0:  # Whole characters in several bytes, and broken ones.
        content = '中é🎉'.encode() + bytes([0xE4, 0xFF])
        start = made.token_to_id('<0x00>')
        if start is not None:
          ids[1:1] = [start + byte for byte in content[draw.randrange(9) :]]
      pieces = list(stream(ids, made.decode, in_bytes, skipped))
      self.assertEqual(''.join(pieces), made.decode(ids), msg=ids)
      pieces_seen += len(pieces)
    # Nothing waits for the end without a reason.
    self.assertGreater(pieces_seen, 4000)

  def test_work_per_id_is_bounded(self):
    made, longest = _KINDS['byte_fallback'](), 0

    def decode(ids):
      nonlocal longest
      longest = max(longest, len(ids))
      return made.decode(ids)

    ids = [made.token_to_id('▁the')] * 5000
    text = ''.join(stream(ids, decode, (), ()))
    self.assertEqual(text, made.decode(ids))
    self.assertLess(longest, 200)


if __name__ == '__main__':
  absltest.main()
