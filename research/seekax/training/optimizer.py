"""AdamW with clipping, decay by parameter name."""

from typing import Any

import jax
import optax

from seekax.config import Config
from seekax.training.schedules import learning_rate


def decays(params: Any) -> Any:
  """True for matrices and tables; norms ('scale') aren't decayed.

  By name, never by rank: stacked norm gains are [N, D].
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key != 'scale', params
  )


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """Clip by the global norm, then AdamW at the scheduled rate."""
  optim = config.optim
  return optax.chain(
    optax.clip_by_global_norm(optim.clip_norm),
    optax.adamw(
      lambda step: learning_rate(step, optim, config.train.steps),
      b1=optim.beta1,
      b2=optim.beta2,
      eps=optim.eps,
      weight_decay=optim.weight_decay,
      mask=decays,
    ),
  )
