"""Equal layers in sequence, with stacked parameters.

Letters: N stacked layers.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seekax.arrays import PyTree
from seekax.configuration.compute import ComputeConfig
from seekax.configuration.model import ModelConfig
from seekax.model.block import Block
from seekax.model.weights import Weights
from seekax.ops.precision import Policy
from seekax.ops.rematerialisation import POLICIES, recomputed_in_turn


def block_class(
  compute: ComputeConfig, scanned: bool = False
) -> type[nn.Module]:
  """Returns the layer's class, recomputed in the backward pass as configured.

  Args:
    compute: says what is recomputed.
    scanned: whether the layer becomes the body of a scan. Elsewhere the
      compiler sees both passes at once and must be kept from merging the
      recomputation with the first computation, which would keep everything.

  Returns:
    The module's class.
  """
  if compute.remat == 'none':
    return Block
  return nn.remat(
    Block,
    methods=['__call__'],
    prevent_cse=not scanned,
    policy=POLICIES[compute.remat],
  )


def stacked(
  config: ModelConfig,
  use_experts: bool,
  length: int,
  policy: Policy,
  compute: ComputeConfig,
) -> nn.Module:
  """A scan over `length` blocks; parameters are stacked [N, ...]."""
  shared = dict(
    variable_axes={'params': 0},
    split_rngs={'params': True},
    length=length,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  scanned = nn.scan(
    block_class(compute, scanned=True),
    methods={
      '__call__': dict(in_axes=(0, nn.broadcast, nn.broadcast), **shared),
      'decode': dict(in_axes=(0, 0, nn.broadcast), **shared),
    },
  )
  return scanned(config, use_experts, policy, compute)


def pipelined_stack(config: ModelConfig) -> str:
  """Name of the stack that is divided among a pipeline's stages."""
  return 'expert_layers' if config.uses_experts else 'dense_layers'


def run(
  layers: nn.Module,
  method: str,
  x: jax.Array,
  per_layer: Sequence[PyTree],
  shared: Sequence[PyTree],
) -> tuple[jax.Array, PyTree]:
  """Calls a method of every layer in turn, each on the previous one's output.

  Up to `unroll_layers` layers are unrolled, more are one scan. A scan keeps the
  compile time constant, but it copies: what the backward pass needs is stacked
  and sliced again, which takes a quarter of a small model's step on a CPU.

  Args:
    layers: a bound module from `stacked`; its parameters are stacked [N, ...],
      or one tree per layer under '0', '1', ...
    method: name of a method of Block.
    x: input of the first layer.
    per_layer: arguments after x, each stacked [N, ...] or a list of N.
    shared: arguments after those, equal for all layers.

  Returns:
    (output of the last layer, the method's other results: a list with one item
    per layer if unrolled, stacked if not).
  """
  compute = layers.compute
  params = layers.variables.get('params')
  length = num_layers(params) if params else 0
  if not 0 < length <= compute.unroll_layers:
    return getattr(layers, method)(x, *per_layer, *shared)
  block = Block(
    layers.config, layers.use_experts, layers.policy, compute, parent=None
  )

  def layer(own, x, arguments, shared):
    return block.apply({'params': own}, x, *arguments, *shared, method=method)

  if compute.remat != 'none' and method == '__call__':
    layer = recomputed_in_turn(layer, POLICIES[compute.remat])
  outputs = []
  own_params = one_by_one(params, length)
  own_arguments = [one_by_one(x, length) for x in per_layer]
  for own, *arguments in zip(own_params, *own_arguments, strict=True):
    x, output = layer(own, x, arguments, shared)
    outputs.append(output)
  return x, outputs


def run_unbound(
  block: Block,
  params: dict[str, PyTree],
  bias_NE: jax.Array | None,
  x: jax.Array,
  shared: Sequence[PyTree],
) -> tuple[jax.Array, PyTree]:
  """Calls `run` with '__call__' on a slice of a stack's parameters.

  Args:
    block: one layer, unbound.
    params: stacked [N, ...], N above 0.
    bias_NE: selection biases of the routers, or None without.
    x: input of the first layer.
    shared: positions and segments.

  Returns:
    (output of the last layer, the loads stacked [N, ...] or None).
  """
  compute = block.compute

  def layer(own, x, bias_E, shared):
    x, (load, _) = block.apply({'params': own}, x, bias_E, *shared)
    return x, load

  length = num_layers(params)
  if length <= compute.unroll_layers:
    if compute.remat != 'none':
      layer = recomputed_in_turn(layer, POLICIES[compute.remat])
    loads = []
    biases = [None] * length if bias_NE is None else bias_NE
    for own, bias_E in zip(unstack(params, length), biases, strict=True):
      x, load = layer(own, x, bias_E, shared)
      loads.append(load)
    return x, join(loads)
  if compute.remat != 'none':
    layer = jax.checkpoint(
      layer, policy=POLICIES[compute.remat], prevent_cse=False
    )

  def step(x, inputs):
    own, bias_E = inputs
    return layer(own, x, bias_E, shared)

  return jax.lax.scan(step, x, (params, bias_NE))


def num_layers(params: Mapping[str, PyTree]) -> int:
  """N of a stack's parameters, whether stacked or one tree per layer."""
  return len(params) if '0' in params else jax.tree.leaves(params)[0].shape[0]


def one_by_one(tree: PyTree, length: int) -> list[PyTree]:
  """A list with each layer's part of something stacked or already a list."""
  if isinstance(tree, list):
    return tree
  if isinstance(tree, dict) and '0' in tree:
    return [tree[str(i)] for i in range(length)]
  return unstack(tree, length)


def join(outputs: PyTree) -> PyTree:
  """Stacks the outputs of `run` if they are a list."""
  if not isinstance(outputs, list):
    return outputs
  return jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)


def taken_apart(compute: ComputeConfig, weights: Weights) -> Weights:
  """Returns weights with separate arrays for each layer, for inference.

  A program that reads one layer of a stack copies it first, which on a CPU
  takes a fifth of the time of decoding a token. Stacks of more than
  `unroll_layers` layers stay as they are, because they run as a scan.

  Args:
    compute: says how many layers are unrolled.
    weights: stacked weights of the whole model.

  Returns:
    The same weights, with {'0': ..., '1': ...} in place of a stack; other
    leaves are shared.
  """
  params = weights.params
  apart = dict(params)
  for name in ('dense_layers', 'expert_layers'):
    own = params.get(name, {'0': None})
    if '0' not in own and num_layers(own) <= compute.unroll_layers:
      layers = _slices(own, num_layers(own))
      apart[name] = {str(i): layer for i, layer in enumerate(layers)}
  return dataclasses.replace(weights, params=apart)


def _slices(stack: dict[str, PyTree], length: int) -> list[PyTree]:
  """A tree of copies for each layer."""
  if not all(map(_in_host_memory, jax.tree.leaves(stack))):
    return jax.jit(unstack, static_argnums=1)(stack, length)
  # A command that starts has one program less to compile or to load.
  return [
    jax.tree.map(
      lambda x, i=i: jax.device_put(np.array(np.asarray(x)[i])), stack
    )
    for i in range(length)
  ]


def _in_host_memory(x: jax.Array) -> bool:
  """Whether NumPy sees the values without a copy."""
  return not isinstance(x, jax.core.Tracer) and (
    {device.platform for device in x.devices()} == {'cpu'}
    and x.is_fully_replicated
    and x.is_fully_addressable
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstack(tree: PyTree, length: int) -> list[PyTree]:
  """[N, ...] leaves to N trees.

  Its gradient is one stack; the gradient of plain indexing would be a sum of N
  arrays as large as the stack.
  """
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(length)]


def _unstack_forward(tree, length):
  return unstack(tree, length), None


def _unstack_backward(length, residuals, gradients):
  del length, residuals
  return (jax.tree.map(lambda *parts: jnp.stack(parts), *gradients),)


unstack.defvjp(_unstack_forward, _unstack_backward)
