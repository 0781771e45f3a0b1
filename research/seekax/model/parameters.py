"""The tree of parameters: initial values, shapes, axes, compute dtypes."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from seekax.arrays import PyTree
from seekax.configuration.model import ModelConfig
from seekax.model.transformer import bias_shapes, Transformer
from seekax.model.weights import Weights
from seekax.ops.precision import HIGH, Policy
from seekax.parallel import mesh
from seekax.parallel.rules import Names

# Parameters that stay float32 for any compute dtype.
FLOAT32 = ('router', 'scale')


def init_params(config: ModelConfig, seed: int) -> PyTree:
  """Initial float32 parameters of the model and its MTP modules."""
  return nn.meta.unbox(_init(config, seed))


def init_router_bias(config: ModelConfig) -> dict[str, jax.Array]:
  """Selection biases at the start of training: zero."""
  return {
    key: jnp.zeros(shape, jnp.float32)
    for key, shape in bias_shapes(config).items()
  }


def init_weights(config: ModelConfig, seed: int) -> Weights:
  """Weights at the start of training."""
  return Weights(init_params(config, seed), init_router_bias(config))


def abstract_weights(config: ModelConfig) -> Weights:
  """Shapes and dtypes of all weights; nothing is computed."""
  bias = jax.eval_shape(lambda: init_router_bias(config))
  return Weights(nn.meta.unbox(_boxed_shapes(config)), bias)


def weight_axes(config: ModelConfig) -> Weights:
  """All weights with a `Names` in place of each array."""
  params = jax.tree.map(
    lambda box: Names(tuple(box.names)),
    _boxed_shapes(config),
    is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
  )
  bias = {key: Names((None, 'choices')) for key in bias_shapes(config)}
  # pyrefly: ignore[bad-argument-type]: names stand for arrays.
  return Weights(params, bias)


def cast_params(
  params: PyTree, dtype: jnp.dtype, policy: Policy = HIGH
) -> PyTree:
  """Casts masters to the compute dtype; some stay float32, by name.

  Router and norms compute in float32. The embedding is cast after the look-up:
  its gradient adds up one row per occurrence of a token, and in bfloat16 such a
  sum stops growing (28 % too small for a tenth of 32,768 tokens). Weights that
  a policy quantises are quantised from the masters.
  """
  float32 = {*FLOAT32, 'table', *policy.reads_masters}

  def cast(path, x):
    names = {entry.key for entry in path}
    return x if names & float32 else x.astype(dtype)

  return jax.tree_util.tree_map_with_path(cast, params)


def cast_weights(weights: Weights, dtype: str) -> Weights:
  """Casts weights for inference; router biases stay float32."""
  params = cast_params(weights.params, jnp.dtype(dtype))
  return dataclasses.replace(weights, params=params)


def _init(config: ModelConfig, seed: int) -> PyTree:
  """Float32 parameters, boxed with the names of their axes."""
  # Two positions suffice: no parameter's shape depends on the length.
  tokens_BL = jnp.zeros((1, 2), jnp.int32)
  return Transformer(config).init(
    jax.random.key(seed), tokens_BL, method='initialise'
  )['params']


@functools.cache
def _boxed_shapes(config: ModelConfig) -> PyTree:
  """Shapes of `_init`, whole ones even while ranks of a mesh work alone.

  Cached, because tracing the model takes longer than all uses of the shapes.
  """
  with mesh.none():
    return jax.eval_shape(lambda: _init(config, 0))
