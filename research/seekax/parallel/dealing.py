"""Layers to the stages of a pipeline.

Letters: S stages, N layers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def counts(layers: int, stages: int, first: int, last: int) -> tuple[int, ...]:
  """How many of a model's layers each stage has.

  The stage with most to do has as little as can be, and then the one with most
  layers as few as can be: every rank has room for so many.

  Args:
    layers: of the model.
    stages: two or more.
    first: what the first stage has besides, in layers.
    last: what the last one has.
  """
  most = max(-(-layers // stages), first, last)
  while _room(most, stages, first, last).sum() < layers:
    most += 1
  room = _room(most, stages, first, last)
  each = next(n for n in range(most + 1) if room.clip(max=n).sum() >= layers)
  ends = room.clip(max=each).cumsum().clip(max=layers)
  return tuple(np.diff(ends, prepend=0).tolist())


def _room(most: int, stages: int, first: int, last: int) -> np.ndarray:
  """Layers of each stage if none has more than `most` to do."""
  room = np.full(stages, most)
  room[0], room[-1] = max(most - first, 0), max(most - last, 0)
  return room


def dealt(x: jax.Array, counts: Sequence[int]) -> jax.Array:
  """[N, ...] to [S, max(counts), ...]: to each stage its own, then zeros."""
  ends = np.cumsum(counts)
  rest = [(0, 0)] * (x.ndim - 1)
  return jnp.stack(
    [
      jnp.pad(x[end - count : end], [(0, max(counts) - count), *rest])
      for count, end in zip(counts, ends, strict=True)
    ]
  )


def collected(x: jax.Array, counts: Sequence[int]) -> jax.Array:
  """The inverse of `dealt`."""
  return jnp.concatenate([x[s, :count] for s, count in enumerate(counts)])
