"""A needle in a haystack: the prompt, whether a model finds it, the picture.

Letters: B prompts, L positions, D model width.
"""

from collections.abc import Sequence
import functools

import jax.numpy as jnp
import numpy as np

from seekax.configuration.model import ModelConfig
from seekax.machine import compiling
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def hide(
  hay_L: np.ndarray, needle: np.ndarray, asked: np.ndarray, depth: float
) -> np.ndarray:
  """The hay with a needle at a depth, and question and answer at its end.

  Args:
    hay_L: token ids; the first one (bos) is kept.
    needle: token ids that replace hay.
    asked: token ids of the question and its answer.
    depth: 0 is the beginning, 1 the place right before the question.

  Returns:
    Token ids, as many as the hay has.
  """
  row_L, end = hay_L.copy(), len(hay_L) - len(asked)
  start = 1 + int(depth * (end - len(needle) - 1))
  row_L[start : start + len(needle)] = needle
  row_L[end:] = asked
  return row_L


@functools.partial(compiling.jit, static_argnums=(0, 3))
def _likeliest(model: ModelConfig, weights, tokens_BL, count):
  """The likeliest tokens [B, count] at the last `count` places."""
  transformer, variables = Transformer(model), {'params': weights.params}
  positions_BL = jnp.broadcast_to(
    jnp.arange(tokens_BL.shape[1]), tokens_BL.shape
  )
  trunk = transformer.apply(
    variables, tokens_BL, positions_BL, None, weights.router_bias
  )
  before_BLD = trunk.hidden_BLD[:, -1 - count : -1]
  logits = transformer.apply(variables, before_BLD, method='logits')
  return logits.argmax(axis=-1)


def share_found(
  model: ModelConfig,
  weights: Weights,
  rows: Sequence[np.ndarray],
  count: int,
) -> float:
  """The share of the answers' tokens that are the likeliest where they stand.

  Args:
    model: the model.
    weights: the model's, in the compute dtype.
    rows: prompts of one length, each with its answer at the end.
    count: how many tokens an answer has.
  """
  rows_BL = np.stack(rows).astype(np.int32)
  found = _likeliest(model, weights, rows_BL, count)
  return float((np.asarray(found) == rows_BL[:, -count:]).mean())


def draw_grid(axes, shares: np.ndarray, lengths, depths=DEPTHS):
  """Draws shares [depths, lengths], from 0 to 1; returns the image."""
  image = axes.imshow(shares, vmin=0, vmax=1, cmap='viridis', aspect='auto')
  axes.set_xticks(range(len(lengths)), lengths)
  axes.set_yticks(range(len(depths)), depths)
  return image
