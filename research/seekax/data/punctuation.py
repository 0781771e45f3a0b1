"""Splits some of the tokens that merge punctuation with a line end.

Such merged tokens bias a model where a prompt ends in punctuation without a
line end; DeepSeek-V3 (section 4.1) splits a random part of them in training.
"""

import re

import numpy as np

from seekax.data.tokenizer import Tokenizer

_MERGED = re.compile(r'([ \t]*[^\s\w\ufffd]+)([\r\n]+)')


class PunctuationSplitter:
  """Replaces merged tokens by their two parts."""

  def __init__(self, tokenizer: Tokenizer):
    """Searches the vocabulary for merged tokens."""
    self._parts = {}
    for token_id in range(tokenizer.vocab_size):
      # U+FFFD may stand for part of a character, which its text doesn't show.
      match = _MERGED.fullmatch(tokenizer.decode([token_id]))
      if match:
        parts = np.concatenate(tokenizer.encode_many(match.groups()))
        if tokenizer.decode(parts) == match[0]:
          self._parts[token_id] = parts
    self._is_merged = np.zeros(tokenizer.vocab_size, bool)
    self._is_merged[list(self._parts)] = True

  def count(self, tokens: np.ndarray) -> int:
    """Returns the number of merged tokens."""
    return int(self._is_merged[tokens].sum())

  def split(self, tokens: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Splits some of the merged tokens.

    Args:
      tokens: int32 [L].
      chosen: bool [`count(tokens)`], which of the merged tokens to split.

    Returns:
      int32 tokens of the same text.
    """
    places = np.flatnonzero(self._is_merged[tokens])[chosen]
    pieces, done = [], 0
    for place in places.tolist():
      pieces += [tokens[done:place], self._parts[int(tokens[place])]]
      done = place + 1
    return np.concatenate([*pieces, tokens[done:]]).astype(np.int32)
