"""AdamW with clipping, decay by parameter name."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from seekax.config import Config
from seekax.ops.reductions import sum_of_squares
from seekax.training.schedules import learning_rate


def decays(params: Any) -> Any:
  """True for matrices and tables; norms ('scale') aren't decayed.

  By name, never by rank: stacked norm gains are [N, D].
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key != 'scale', params
  )


def mean_and_clip(
  sums: Any, count: jax.Array, clip_norm: float
) -> tuple[Any, jax.Array]:
  """Sums over targets to a mean, clipped by its global norm.

  One factor does both, so that no gradient is written for it.

  Args:
    sums: float32 gradients, summed over targets.
    count: the targets.
    clip_norm: largest norm of the result.

  Returns:
    (gradients, the mean's norm before clipping).
  """
  squares = [sum_of_squares(x) for x in jax.tree.leaves(sums)]
  norm = jnp.sqrt(sum(squares)) / count
  factor = jnp.where(norm > clip_norm, clip_norm / norm, 1.0) / count
  return jax.tree.map(lambda x: x * factor, sums), norm


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """AdamW at the scheduled rate."""
  optim = config.optim
  return optax.adamw(
    lambda step: learning_rate(step, optim, config.train.steps),
    b1=optim.beta1,
    b2=optim.beta2,
    eps=optim.eps,
    weight_decay=optim.weight_decay,
    mask=decays,
  )
