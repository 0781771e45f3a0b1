"""A byte-level BPE of our own: trained on a corpus, kept for the next run."""

from collections.abc import Sequence
import functools
import json
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from seekax.data import long_text, sources
from seekax.data.tokenizer import BOS, EOS, MIN_VOCAB_SIZE, Tokenizer
from seekax.data.tokenizer_files import cache_folder
from seekax.files import write_atomically

# Words take one character before them (a space, a dot, an underscore), digits
# go in threes, punctuation takes the line ends after it, and indentation is
# one piece that starts after the line end: so a prompt that ends in a newline
# is split like the same text in the middle of a file.
_PIECES = (
  r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*'
  r'|\s*[\r\n]+|[ \t]{2,}|\s+'
)
# Part of the cache key: raise it with every change to `train`.
_RECIPE_VERSION = 1


def train(
  texts: Sequence[str], vocab_size: int, more_controls: Sequence[str] = ()
) -> Tokenizer:
  """Trains a byte-level BPE; BOS is 0, EOS is 1, decode inverts encode.

  The result is deterministic. From little text the vocabulary stays smaller
  than asked for.

  Args:
    texts: texts to learn from.
    vocab_size: maximum number of tokens.
    more_controls: control tokens that get ids from 2 on, such as `FIM`.

  Raises:
    DataError: `vocab_size` leaves no room for the 256 bytes.
  """
  least = MIN_VOCAB_SIZE + len(more_controls)
  if vocab_size < least:
    raise sources.DataError(
      f'vocab_size={vocab_size} is below {least}, the 256 bytes, '
      f'{"BOS and EOS" if not more_controls else "BOS, EOS and other controls"}'
      '; raise model.vocab_size'
    )
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = _words()
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[BOS, EOS, *more_controls],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  # A separate pre-tokenizer: the tokenizer's own is locked while it trains.
  same_words = functools.partial(_same_words, _words())
  pieces = (
    piece for text in texts for piece in long_text.cut(text, same_words)
  )
  tokenizer.train_from_iterator(pieces, trainer)
  return Tokenizer(tokenizer.to_str())


def _words() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_PIECES), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def _same_words(
  words: pre_tokenizers.PreTokenizer, left: str, gap: str, right: str
) -> bool:
  """Whether a cut leaves the words that a tokenizer learns from unchanged."""
  whole, *parts = (
    [word for word, _ in words.pre_tokenize_str(text)]
    for text in (left + gap + right, left, right)
  )
  return whole == sum(parts, [])


def for_corpus(
  documents: Sequence[sources.Document],
  vocab_size: int,
  more_controls: Sequence[str] = (),
) -> Tokenizer:
  """Trains on the documents, or returns the result of an earlier training.

  Results are kept in `$SEEKAX_CACHE`, `$XDG_CACHE_HOME/seekax` or
  `~/.cache/seekax`. If this cache can't be written or is corrupt, the tokenizer
  is trained again.

  Raises:
    DataError: see `train`.
  """
  texts = [document.text for document in documents]
  try:
    folder = cache_folder()
  except RuntimeError:  # There is no home folder.
    return train(texts, vocab_size, more_controls)
  path = folder / f'{_corpus_key(documents, vocab_size, more_controls)}.bpe'
  try:
    return _load_cached(path)
  except (OSError, ValueError):
    tokenizer = train(texts, vocab_size, more_controls)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tokenizer.to_json()
    write_atomically(path, f'{sources.sha256(content)}\n{content}')
  except OSError:
    pass
  return tokenizer


def _load_cached(path: pathlib.Path) -> Tokenizer:
  digest, _, content = path.read_text(encoding='utf-8').partition('\n')
  if digest != sources.sha256(content):
    raise sources.DataError(f'{path} is corrupt')
  return Tokenizer(content)


def _corpus_key(
  documents: Sequence[sources.Document],
  vocab_size: int,
  more_controls: Sequence[str],
) -> str:
  names_and_texts = [(d.name, sources.sha256(d.text)) for d in documents]
  return sources.sha256(
    json.dumps([_RECIPE_VERSION, vocab_size, names_and_texts, *more_controls])
  )
