"""The tree of parameters: initial values, shapes, compute dtypes."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from seekax.config import ModelConfig
from seekax.model.transformer import bias_shapes, Transformer
from seekax.ops.precision import HIGH, Policy

# Parameters that compute in float32 whatever the compute dtype is.
FLOAT32 = ('router', 'scale')


def init_params(config: ModelConfig, seed: int) -> Any:
  """Initial float32 parameters of the model and its MTP modules."""
  # Two positions suffice: no parameter's shape depends on the length.
  tokens_BL = jnp.zeros((1, 2), jnp.int32)
  variables = Transformer(config).init(
    jax.random.key(seed), tokens_BL, method='initialise'
  )
  return nn.meta.unbox(variables)['params']


def init_router_bias(config: ModelConfig) -> dict[str, jax.Array]:
  """Selection biases at the start of training: zero."""
  return {
    key: jnp.zeros(shape, jnp.float32)
    for key, shape in bias_shapes(config).items()
  }


def abstract_weights(config: ModelConfig) -> dict[str, Any]:
  """Shapes of {'params', 'router_bias'}; nothing is computed."""
  return jax.eval_shape(
    lambda: {
      'params': init_params(config, 0),
      'router_bias': init_router_bias(config),
    }
  )


def cast_params(params: Any, dtype: jnp.dtype, policy: Policy = HIGH) -> Any:
  """Masters in the compute dtype; by name, some stay float32.

  Router and norms compute in float32. The embedding is cast after the look-up:
  its gradient adds up one row per occurrence of a token, and in bfloat16 such
  a sum stops growing (28 % too small for a tenth of 32,768 tokens). What a
  policy quantises is quantised from the masters.
  """
  float32 = {*FLOAT32, 'table', *policy.reads_masters}

  def cast(path, x):
    names = {entry.key for entry in path}
    return x if names & float32 else x.astype(dtype)

  return jax.tree_util.tree_map_with_path(cast, params)
