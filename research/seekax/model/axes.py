"""Logical names of every parameter's axes."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from seekax.config import ModelConfig
from seekax.model.transformer import bias_shapes, Transformer
from seekax.parallel.rules import Names


def weight_axes(config: ModelConfig) -> dict[str, Any]:
  """{'params', 'router_bias'} with a `Names` in place of every array."""
  tokens_BL = jnp.zeros((1, 2), jnp.int32)
  boxed = jax.eval_shape(
    lambda: Transformer(config).init(
      jax.random.key(0), tokens_BL, method='initialise'
    )
  )
  params = jax.tree.map(
    lambda box: Names(tuple(box.names)),
    boxed['params'],
    is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
  )
  bias = {key: Names((None, 'choices')) for key in bias_shapes(config)}
  return {'params': params, 'router_bias': bias}
