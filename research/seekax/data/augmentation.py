"""What training does to a document before packing, the same at every reading.

Chance is a pure function of the seed, the document and the epoch. So it neither
has a state nor depends on shards, processes or where a run was resumed.
"""

import hashlib
import json

import numpy as np

from seekax.configuration.data import DataConfig
from seekax.data import fill_in_the_middle
from seekax.data.punctuation import PunctuationSplitter
from seekax.data.tokenizer import Tokenizer


class Augmentation:
  """Fill-in-the-middle, then the splitting of merged punctuation."""

  def __init__(self, tokenizer: Tokenizer, config: DataConfig):
    """Prepares what the config switches on.

    Raises:
      DataError: fill-in-the-middle is on and the tokenizer lacks its tokens.
    """
    self._tokenizer, self._config = tokenizer, config
    if config.fim_rate:
      fill_in_the_middle.require_tokens(tokenizer)
    if config.split_punctuation_rate:
      self._splitter = PunctuationSplitter(tokenizer)

  def __call__(
    self,
    tokens: np.ndarray,
    is_whole: bool,
    source: int,
    document: int,
    part: int,
    epoch: int,
  ) -> np.ndarray:
    """Returns the tokens to train on.

    Args:
      tokens: int32 [L], a framed document or a piece of one.
      is_whole: whether it is all of a document; only these are rearranged.
      source: number of its source.
      document: its number in there.
      part: of the document, from 0.
      epoch: how often it was read before.
    """
    config = self._config
    if not (config.fim_rate or config.split_punctuation_rate):
      return tokens
    key = [config.seed, source, document, part, epoch]
    if config.fim_rate and is_whole:
      chance, *cuts = _draws('fim', key, 3)
      if chance < config.fim_rate:
        tokens = fill_in_the_middle.fill_in_the_middle(
          tokens, self._tokenizer, cuts
        )
    if config.split_punctuation_rate:
      draws = _draws('punctuation', key, self._splitter.count(tokens))
      tokens = self._splitter.split(
        tokens, draws < config.split_punctuation_rate
      )
    return tokens


def _draws(purpose: str, key: list[int], count: int) -> np.ndarray:
  """float64 [count] in [0, 1), the same on every machine."""
  digest = hashlib.sha256(json.dumps([purpose, *key]).encode()).digest()
  # The bits of a bit generator never change, unlike what a Generator does.
  generator = np.random.Philox(key=np.frombuffer(digest[:16], '<u8'))
  bits = generator.random_raw(count)
  return (bits >> np.uint64(11)) * 2.0**-53
