"""Random changes to documents before packing, the same at every reading.

Every draw is a pure function of the seed, the document and the epoch. So it has
no state and doesn't depend on shards, processes or where a run was resumed.
"""

import hashlib
import json

import numpy as np

from seekax.configuration.data import DataConfig
from seekax.data import fill_in_the_middle
from seekax.data.punctuation import PunctuationSplitter
from seekax.data.tokenizer import Tokenizer


class Augmentation:
  """Applies fill-in-the-middle, then splits merged punctuation."""

  def __init__(self, tokenizer: Tokenizer, config: DataConfig):
    """Prepares the augmentations that the config switches on.

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
      is_whole: whether it is a whole document; only whole ones are rearranged.
      source: number of its source.
      document: its number within the source.
      part: number of the piece within the document, from 0.
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
  # A bit generator's output never changes between versions, a Generator's may.
  generator = np.random.Philox(key=np.frombuffer(digest[:16], '<u8'))
  bits = generator.random_raw(count)
  return (bits >> np.uint64(11)) * 2.0**-53
