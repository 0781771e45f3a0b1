"""Fill-in-the-middle: moves a document's middle behind its end."""

from collections.abc import Sequence

import numpy as np

from seekax.data.reading_rules import DataError
from seekax.data.tokenizer import Tokenizer


def fill_in_the_middle(
  tokens: np.ndarray, tokenizer: Tokenizer, draws: Sequence[float]
) -> np.ndarray:
  """Puts prefix and suffix before the middle (DeepSeek-V3, section 4.1).

  The document is cut between characters, not tokens, because a user's prefix
  may end anywhere. So the three parts are encoded again.

  Args:
    tokens: int32 [bos, tokens..., eos], a whole document.
    tokenizer: has `fim_ids`.
    draws: two numbers in [0, 1) that decide where it is cut.

  Returns:
    int32 [bos, begin, prefix..., hole, suffix..., end, middle..., eos].
  """
  text = tokenizer.decode(tokens[1:-1])
  first, second = sorted(int(draw * (len(text) + 1)) for draw in draws)
  parts = (text[:first], text[second:], text[first:second])
  framed = [tokens[:1]]
  for mark, part in zip(
    tokenizer.fim_ids, tokenizer.encode_many(parts), strict=True
  ):
    framed += [np.array([mark]), part]
  return np.concatenate([*framed, tokens[-1:]]).astype(np.int32)


def require_tokens(tokenizer: Tokenizer) -> None:
  """Raises DataError if the tokenizer lacks the three special tokens."""
  if not tokenizer.fim_ids:
    raise DataError(
      'data.fim_rate is above 0 but the tokenizer has no fill-in-the-middle '
      'tokens (<|fim_begin|>, <|fim_hole|>, <|fim_end|> or their like); set '
      'data.fim_rate=0 or take another tokenizer'
    )
