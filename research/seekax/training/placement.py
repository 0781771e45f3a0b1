"""Where the parts of a training state lie on a mesh.

Masters and the optimizer's moments are split alike (ZeRO); the rest is small
and lies whole on every device.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seekax.config import Config, ModelConfig
from seekax.model.parameters import weight_axes
from seekax.model.stack import pipelined_stack
from seekax.parallel import pipeline, rules
from seekax.parallel.mesh import current_sizes
from seekax.training.state import abstract_state, TrainState


def state_shardings(config: Config, mesh: Mesh) -> TrainState:
  """A sharding for every leaf of the state.

  A moment has the path of its parameter below the optimizer's own; that is how
  it is found.
  """
  state = abstract_state(config)
  whole = NamedSharding(mesh, PartitionSpec())
  axes = weight_axes(config.model)['params']
  params = jax.tree.map(
    lambda x, names: rules.sharding(mesh, names.names, 'master', x.shape),
    state.params,
    axes,
  )
  by_path = {
    _keys(path): sharding
    for path, sharding in jax.tree_util.tree_leaves_with_path(params)
  }

  def moment(path, x):
    keys = _keys(path)
    for i in range(len(keys)):
      if keys[i:] in by_path and x.ndim:
        return by_path[keys[i:]]
    return whole

  return TrainState(
    step=whole,
    params=params,
    router_bias=jax.tree.map(lambda _: whole, state.router_bias),
    opt_state=jax.tree_util.tree_map_with_path(moment, state.opt_state),
    guard=jax.tree.map(lambda _: whole, state.guard),
  )


def _keys(path) -> tuple[str, ...]:
  """The names of dict keys and fields on a path."""
  return tuple(str(getattr(entry, 'key', entry)) for entry in path)


def names_of(params: Any, model: ModelConfig) -> Any:
  """Names of the axes of all parameters, or of some of the tree's entries."""
  axes = weight_axes(model)['params']
  return {key: axes[key] for key in params}


def as_masters(gradients: Any, model: ModelConfig) -> Any:
  """Gradients laid out as the masters."""
  return _constrained(gradients, model, 'master')


def as_weights(params: Any, model: ModelConfig) -> Any:
  """Parameters laid out as they are used: the gather of a ZeRO step.

  They lie like the masters that they were cast from first, or the compiler
  would gather masters and cast then, twice the bytes.
  """
  return _constrained(_constrained(params, model, 'master'), model, 'weight')


def as_stages(
  params: dict[str, Any], model: ModelConfig, counts: Sequence[int]
) -> dict[str, Any]:
  """What stages of a pipeline own, [S, ...]: of a stack their slices.

  Of the rest, which one stage uses, every stage has a copy: an array takes as
  much room on every device.

  Args:
    params: entries of the model's tree, cast.
    model: the model.
    counts: layers of each stage.
  """
  names, staged = names_of(params, model), names_of_stages(params, model)
  params = _constrained_as(params, names, 'master')
  name = pipelined_stack(model)
  # Masters lie over the pipeline along other axes than that of layers: each
  # rank gets its layers' parts of all others, and only then gathers over the
  # ranks of the batch.
  dealt = jax.tree.map(lambda x: pipeline.dealt(x, counts), params[name])
  dealt = _constrained_as(dealt, staged[name], 'master')
  others = _constrained_as(_without(params, name), names, 'weight')
  copies = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (len(counts), *x.shape)), others
  )
  return _constrained_as({**copies, name: dealt}, staged, 'weight')


def from_stages(
  gradients: dict[str, Any], model: ModelConfig, counts: Sequence[int]
) -> dict[str, Any]:
  """The inverse, for gradients, which are 0 where a stage uses nothing."""
  # Each rank gets its part of all stages', as masters lie.
  whole = jax.tree.map(
    lambda own: rules.axes(None, *own.names[1:]),
    names_of_stages(gradients, model),
  )
  gradients = _constrained_as(gradients, whole, 'master')
  name = pipelined_stack(model)
  stack = jax.tree.map(lambda x: pipeline.collected(x, counts), gradients[name])
  others = jax.tree.map(lambda x: x.sum(axis=0), _without(gradients, name))
  return {**others, name: stack}


def names_of_stages(params: Any, model: ModelConfig) -> dict[str, Any]:
  """Names of the axes of `as_stages`."""
  names, name = names_of(params, model), pipelined_stack(model)
  stack = jax.tree.map(
    lambda own: rules.axes('stages', None, *own.names[1:]), names[name]
  )
  others = jax.tree.map(
    lambda own: rules.axes('stages', *own.names), _without(names, name)
  )
  return {**others, name: stack}


def _without(tree: dict[str, Any], name: str) -> dict[str, Any]:
  return {key: value for key, value in tree.items() if key != name}


def _constrained(params: Any, model: ModelConfig, role: rules.Role) -> Any:
  """All parameters, or some of the tree's entries."""
  return _constrained_as(params, names_of(params, model), role)


def _constrained_as(params: Any, axes: Any, role: rules.Role) -> Any:
  if not current_sizes():
    return params
  return {
    key: jax.tree.map(
      lambda x, names: rules.constrain(x, *names.names, role=role),
      params[key],
      axes[key],
    )
    for key in params
  }
