"""How a training state is split over a mesh.

Masters and the optimizer's moments are split alike (ZeRO); the rest is small
and replicated on every device.
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seekax.arrays import PyTree
from seekax.configuration.config import Config
from seekax.configuration.model import ModelConfig
from seekax.model.parameters import weight_axes
from seekax.parallel import rules
from seekax.training.state import abstract_state, TrainState


def state_shardings(config: Config, mesh: Mesh) -> TrainState:
  """Returns a sharding for every leaf of the state.

  The moments of a parameter are found by its path, which their paths contain.
  """
  state = abstract_state(config)
  whole = NamedSharding(mesh, PartitionSpec())
  axes = weight_axes(config.model).params
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
    # pyrefly: ignore[bad-argument-type]: shardings stand for arrays.
    step=whole,
    params=params,
    router_bias=jax.tree.map(lambda _: whole, state.router_bias),
    opt_state=jax.tree_util.tree_map_with_path(moment, state.opt_state),
    guard=jax.tree.map(lambda _: whole, state.guard),
  )


def _keys(path) -> tuple[str, ...]:
  """The names of dict keys and fields on a path."""
  return tuple(str(getattr(entry, 'key', entry)) for entry in path)


def names_of(params: PyTree, model: ModelConfig) -> PyTree:
  """Names of the axes of all parameters, or of some of the tree's entries."""
  axes = weight_axes(model).params
  return {key: axes[key] for key in params}


def as_weights(params: PyTree, model: ModelConfig) -> PyTree:
  """Lays parameters out for their use: the gather of a ZeRO step.

  They are first constrained to the layout of their masters. Otherwise the
  compiler would gather masters and cast them afterwards: twice the bytes.
  """
  names = names_of(params, model)
  masters = rules.constrain_all(params, names, 'master')
  return rules.constrain_all(masters, names, 'weight')
