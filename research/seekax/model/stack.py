"""Equal layers in sequence, their parameters stacked.

Letters: N stacked layers.
"""

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from seekax.config import ModelConfig
from seekax.model.block import Block


def block_class(config: ModelConfig) -> type[nn.Module]:
  """The layer, recomputed in the backward pass if the config says so."""
  if config.remat == 'full':
    return nn.remat(Block, methods=['__call__'], prevent_cse=False)
  return Block


def stacked(config: ModelConfig, use_experts: bool, length: int) -> nn.Module:
  """A scan over `length` blocks; parameters are stacked [N, ...]."""
  shared = dict(
    variable_axes={'params': 0},
    split_rngs={'params': True},
    length=length,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  scanned = nn.scan(
    block_class(config),
    methods={
      '__call__': dict(in_axes=(0, nn.broadcast, nn.broadcast), **shared),
      'decode': dict(in_axes=(0, 0, nn.broadcast), **shared),
    },
  )
  return scanned(config, use_experts)


def run(
  layers: nn.Module,
  method: str,
  x: jax.Array,
  per_layer: Sequence[Any],
  shared: Sequence[Any],
) -> tuple[jax.Array, Any]:
  """Calls a method of every layer in turn, each on the former one's output.

  Up to `unroll_layers` layers are written out, more are one scan. A scan keeps
  the compile time constant, but it copies: what the backward pass needs is
  stacked, and sliced again, a quarter of a small model's step on a CPU.

  Args:
    layers: from `stacked`, bound.
    method: of Block.
    x: input of the first layer.
    per_layer: arguments after x, stacked [N, ...].
    shared: arguments after those, the same for all layers.

  Returns:
    (output of the last layer, everything else the method returns, stacked).
  """
  config = layers.config
  params = layers.variables.get('params')
  length = jax.tree.leaves(params)[0].shape[0] if params else 0
  if not 0 < length <= config.unroll_layers:
    return getattr(layers, method)(x, *per_layer, *shared)
  block = block_class(config)(config, layers.use_experts, parent=None)
  outputs = []
  for own, arguments in zip(
    unstack(params, length), unstack(per_layer, length), strict=True
  ):
    x, output = block.apply(
      {'params': own}, x, *arguments, *shared, method=method
    )
    outputs.append(output)
  return x, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstack(tree: Any, length: int) -> list[Any]:
  """[N, ...] leaves to N trees.

  Its gradient is one stack; that of plain indexing would be a sum of N arrays
  as large as the stack.
  """
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(length)]


def _unstack_forward(tree, length):
  return unstack(tree, length), None


def _unstack_backward(length, residuals, gradients):
  del length, residuals
  return (jax.tree.map(lambda *parts: jnp.stack(parts), *gradients),)


unstack.defvjp(_unstack_forward, _unstack_backward)
