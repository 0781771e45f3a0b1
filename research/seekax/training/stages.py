"""Moves weights from masters to pipeline stages, and gradients back.

Masters are split over the pipeline along another axis than that of layers,
which are divided among the stages unevenly, so each rank has a part of every
layer. It gets the other parts of its stage's layers from the other stages'
ranks, and only then gathers over the ranks of the batch; gradients go the other
way.

Letters: S stages, N layers, Q number of layers that a stage allocates.
"""

import jax
from jax.sharding import PartitionSpec

from seekax.arrays import PyTree
from seekax.configuration.model import ModelConfig
from seekax.model.stack import pipelined_stack
from seekax.parallel import dealing, pipeline, rules
from seekax.training import placement

_AXIS = pipeline.AXIS


def layer_counts(model: ModelConfig, stages: int) -> tuple[int, ...]:
  """Number of layers of the divided stack that each stage has."""
  first = model.num_plain_layers if model.uses_experts else 0
  layers = model.num_expert_layers if first else model.num_layers
  return dealing.counts(layers, stages, first, model.mtp_depth)


class Stages:
  """The assignment of a model's parameters to stages.

  Parameters of the stack are [N, ...] as masters and [S, Q, ...] on the stages.
  Each other parameter is used by one stage, but every stage has a copy,
  [S, ...], because an array has the same size on every device.

  Attributes:
    names: names of the axes of the stages' parameters.
    specs: layout of the stages' gradients once they are summed over the ranks
      of the batch.
  """

  def __init__(
    self, params: dict[str, PyTree], model: ModelConfig, stages: int
  ):
    """Takes some entries of a model's tree of parameters."""
    self._model, self._counts = model, layer_counts(model, stages)
    self._of_model = placement.names_of(params, model)
    self._masters = jax.tree.map(
      lambda x, own: rules.spec(own.names, 'master', shape=x.shape),
      params,
      self._of_model,
    )
    self.names = self._of_each(
      lambda own: rules.axes('stages', None, *own.names[1:]),
      lambda own: rules.axes('stages', *own.names),
      self._of_model,
    )
    self.specs = self._of_each(_stacked_spec, _copied_spec, self._masters)

  @property
  def counts(self) -> tuple[int, ...]:
    """Number of layers of the stack that each stage has."""
    return self._counts

  def weights(self, params: dict[str, PyTree]) -> dict[str, PyTree]:
    """Lays cast parameters out for the stages."""
    params = rules.constrain_all(params, self._of_model, 'master')
    staged = self._of_each(self._dealt, self._copied, params, self._masters)
    return rules.constrain_all(staged, self.names, 'weight')

  def gradients(self, staged: dict[str, PyTree]) -> dict[str, PyTree]:
    """Returns the stages' gradients, laid out by `specs`, as the masters'."""
    return self._of_each(self._collected, _summed, staged, self._masters)

  def _of_each(self, of_stack, of_others, *trees):
    """Calls one function on the stack's leaves, another on the other leaves."""
    name = pipelined_stack(self._model)
    return {
      key: jax.tree.map(
        of_stack if key == name else of_others, *(tree[key] for tree in trees)
      )
      for key in trees[0]
    }

  def _copied(self, x, master):
    """[...] to [S, ...]: a copy for every stage."""

    def local(x):
      axis = _pipeline_axis(master)
      if axis is not None:
        x = jax.lax.all_gather(x, _AXIS, axis=axis, tiled=True)
      return x[None]

    return _per_device(local, master, _copied_spec(master))(x)

  def _dealt(self, x, master):
    """[N, ...] to [S, Q, ...]: each stage's layers."""
    axis = _pipeline_axis(master)

    def local(x):
      x = dealing.dealt(x, self._counts)
      if axis is None:
        rank = jax.lax.axis_index(_AXIS)
        return jax.lax.dynamic_slice_in_dim(x, rank, 1)
      return jax.lax.all_to_all(x, _AXIS, 0, axis + 1, tiled=True)

    return _per_device(local, master, _stacked_spec(master))(x)

  def _collected(self, x, master):
    """[S, Q, ...] to [N, ...]: the inverse of `_dealt`."""
    axis = _pipeline_axis(master)

    def local(x):
      if axis is None:
        x = jax.lax.all_gather(x, _AXIS, tiled=True)
      else:
        x = jax.lax.all_to_all(x, _AXIS, axis + 1, 0, tiled=True)
      return dealing.collected(x, self._counts)

    return _per_device(local, _stacked_spec(master), master)(x)


def _summed(x, master):
  """[S, ...], where all but one are 0, to their sum [...]."""
  axis = _pipeline_axis(master)

  def local(x):
    if axis is None:
      return jax.lax.psum(x[0], _AXIS)
    return jax.lax.psum_scatter(x[0], _AXIS, scatter_dimension=axis, tiled=True)

  return _per_device(local, _copied_spec(master), master)(x)


def _per_device(function, spec, to):
  return jax.shard_map(function, in_specs=spec, out_specs=to, check_vma=False)


def _stacked_spec(master: PartitionSpec) -> PartitionSpec:
  return PartitionSpec(_AXIS, None, *_without_pipeline(master)[1:])


def _copied_spec(master: PartitionSpec) -> PartitionSpec:
  return PartitionSpec(_AXIS, *_without_pipeline(master))


def _without_pipeline(master: PartitionSpec) -> list[tuple[str, ...]]:
  return [
    tuple(axis for axis in part if axis != _AXIS)
    for part in rules.axes_of(master)
  ]


def _pipeline_axis(master: PartitionSpec) -> int | None:
  """The axis of an array that the pipeline splits; its parts are innermost."""
  parts = rules.axes_of(master)
  return next((i for i, part in enumerate(parts) if _AXIS in part), None)
