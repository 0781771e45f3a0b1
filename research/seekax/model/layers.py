"""Norm, embedding, dense FFN and the declaration of matrices.

Letters: B batch, L positions, D model width, F hidden width, V vocabulary.
"""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from seekax.arrays import PyTree
from seekax.configuration.model import ModelConfig
from seekax.ops.linear import PLAIN_SWIGLU, swiglu, SwigluProducts
from seekax.ops.quantize import BlockScaled, expand
from seekax.parallel import rules


def matrix(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  axes: tuple[str, ...],
  config: ModelConfig,
) -> jax.Array:
  """Declares a weight with V3's initialisation and its logical axes.

  A stored FP8 weight is expanded here, where it is used, so that only one of a
  stack of layers is expanded at any time.
  """
  return expand(stored_matrix(module, name, shape, axes, config))


def stored_matrix(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  axes: tuple[str, ...],
  config: ModelConfig,
) -> jax.Array | BlockScaled:
  """The same, but FP8 stays as codes and scales."""
  init = nn.initializers.normal(config.init_std)
  boxed: Callable[..., PyTree] = nn.with_logical_partitioning(init, axes)
  return module.param(name, boxed, shape, jnp.float32)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """x / rms(x) * scale over the last axis, in float32, cast once at the end."""
  x32 = x.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
  normed = x32 * jax.lax.rsqrt(mean_square + eps)
  return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class RmsNorm(nn.Module):
  """Root-mean-square norm with a learned gain, 1 at the start."""

  width: int
  axis: str
  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    ones = nn.initializers.ones
    init: Callable[..., PyTree] = nn.with_logical_partitioning(
      ones, (self.axis,)
    )
    scale = self.param('scale', init, (self.width,), jnp.float32)
    return rms_norm(x, scale, self.eps)


class SwiGlu(nn.Module):
  """A dense FFN; the shared experts together are one, too."""

  config: ModelConfig
  hidden_dim: int
  products: SwigluProducts = PLAIN_SWIGLU

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width, hidden = self.config.embed_dim, self.hidden_dim
    y_TD = swiglu(
      x.reshape(-1, width),
      matrix(self, 'gate', (width, hidden), ('embed', 'mlp'), self.config),
      matrix(self, 'up', (width, hidden), ('embed', 'mlp'), self.config),
      matrix(self, 'down', (hidden, width), ('mlp', 'embed'), self.config),
      self.products,
    )
    return y_TD.reshape(x.shape)


class Embedding(nn.Module):
  """Token embedding, without any scaling."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self, tokens: jax.Array, dtype: jax.typing.DTypeLike
  ) -> jax.Array:
    """Looks up rows of the float32 table and casts them."""
    shape = (self.config.vocab_size, self.config.embed_dim)
    table_VD = matrix(self, 'table', shape, ('vocab', 'embed'), self.config)
    if rules.num_parts('vocab') == 1:
      return jnp.take(table_VD, tokens, axis=0).astype(dtype)
    of_tokens = ('batch', 'length')[: tokens.ndim]
    look_up = rules.per_shard(
      functools.partial(_look_up, dtype),
      inputs=(rules.axes('vocab', None), rules.axes(*of_tokens)),
      outputs=rules.axes(*of_tokens, None),
    )
    return look_up(table_VD, tokens)


def _look_up(
  dtype: jax.typing.DTypeLike, table_VD: jax.Array, tokens: jax.Array
) -> jax.Array:
  """Looks up rows of a table whose vocabulary is split over devices.

  Rows are cast before they are summed: one device has a row, the others zeros.
  """
  count = table_VD.shape[0]
  row = tokens - jax.lax.axis_index(rules.mesh_axes('vocab')) * count
  # JAX would count a negative row from the end.
  row = jnp.where(row < 0, count, row)
  own = jnp.take(table_VD, row, axis=0, mode='fill', fill_value=0)
  return rules.total(own.astype(dtype), 'vocab')
