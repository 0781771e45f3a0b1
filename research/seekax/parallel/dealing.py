"""Assigns layers to the stages of a pipeline.

Letters: S stages, N layers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def counts(layers: int, stages: int, first: int, last: int) -> tuple[int, ...]:
  """Returns how many of a model's layers each stage has.

  It minimises first the work of the busiest stage and then the layers of the
  fullest one, because every rank allocates memory for that many.

  Args:
    layers: number of the model's layers.
    stages: number of stages, two or more.
    first: other work of the first stage, in layers.
    last: other work of the last stage, in layers.
  """
  most = max(-(-layers // stages), first, last)
  while _room(most, stages, first, last).sum() < layers:
    most += 1
  room = _room(most, stages, first, last)
  each = next(n for n in range(most + 1) if room.clip(max=n).sum() >= layers)
  ends = room.clip(max=each).cumsum().clip(max=layers)
  return tuple(np.diff(ends, prepend=0).tolist())


def _room(most: int, stages: int, first: int, last: int) -> np.ndarray:
  """How many layers each stage can take if none has over `most` to do."""
  room = np.full(stages, most)
  room[0], room[-1] = max(most - first, 0), max(most - last, 0)
  return room


def dealt(x: jax.Array, counts: Sequence[int]) -> jax.Array:
  """[N, ...] to [S, max(counts), ...]: each stage's layers, then zeros."""
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
