"""Text in, text out: prompts and their continuations."""

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from seekax.data.tokenizer import Tokenizer
from seekax.inference import engine, sampling
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights


def prompt_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
  """Ids of a text that is to be continued, int32 [L], BOS first.

  What the text says never becomes a control token.
  """
  return np.append(tokenizer.bos_id, tokenizer.encode(text)).astype(np.int32)


def texts(
  model: Transformer,
  weights: Weights,
  tokenizer: Tokenizer,
  prompts: Sequence[np.ndarray],
  max_new_tokens: int,
  how: sampling.Settings,
  seeds: Sequence[int],
  end_ids: Collection[int],
  stop: Collection[str] = (),
) -> list[str]:
  """Continues several prompts as one batch.

  Args:
    model: the model.
    weights: see `engine.generate`.
    tokenizer: the model's.
    prompts: ids of each, as of `prompt_ids` or of a chat template.
    max_new_tokens: most tokens to add.
    how: settings of every row.
    seeds: seed of every row's draws.
    end_ids: see `engine.generate`.
    stop: strings that end a text; none of them is part of it.

  Returns:
    The continuations.
  """
  ids: list[list[int]] = [[] for _ in prompts]
  for tokens in engine.batches_of_tokens(
    model, weights, prompts, max_new_tokens, how, seeds, end_ids
  ):
    for row, token in enumerate(tokens):
      if token is not None:
        ids[row].append(token)
  return [''.join(until(tokenizer.stream(row), stop)) for row in ids]


def until(pieces: Iterable[str], stop: Collection[str]) -> Iterator[str]:
  """Yields text up to the first of the strings that end it.

  Text that may be the beginning of such a string waits until it is known.
  """
  waiting = ''
  for piece in pieces:
    waiting += piece
    ends = [waiting.find(word) for word in stop if word in waiting]
    if ends:
      if first := waiting[: min(ends)]:
        yield first
      return
    held = max((_begun(waiting, word) for word in stop), default=0)
    if ready := waiting[: len(waiting) - held]:
      yield ready
    waiting = waiting[len(waiting) - held :]
  if waiting:
    yield waiting


def _begun(text: str, word: str) -> int:
  """Number of last characters of a text that `word` begins with."""
  sizes = range(min(len(text), len(word) - 1), 0, -1)
  return next((size for size in sizes if text.endswith(word[:size])), 0)
