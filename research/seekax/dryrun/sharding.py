"""Where every parameter of a model lies on a mesh that needn't be there."""

from collections.abc import Iterator
import dataclasses
import math

import jax
import numpy as np

from seekax.config import Config, mesh_sizes
from seekax.model.axes import weight_axes
from seekax.model.parameters import abstract_weights
from seekax.model.stack import pipelined_stack
from seekax.parallel import rules


@dataclasses.dataclass(frozen=True)
class Placement:
  """Of one array.

  Attributes:
    name: its path.
    shape: of the whole array.
    axes: logical name of every axis, '' for none.
    weight: mesh axes of every axis, '' for none, as it is used.
    master: the same of the float32 master.
    weight_bytes: per device, in the compute dtype.
    master_bytes: per device, float32, without the optimizer's moments.
  """

  name: str
  shape: tuple[int, ...]
  axes: tuple[str, ...]
  weight: tuple[str, ...]
  master: tuple[str, ...]
  weight_bytes: int
  master_bytes: int


def placements(config: Config, num_devices: int) -> Iterator[Placement]:
  """Every parameter of the model and its MTP modules.

  Args:
    config: the run, with its mesh.
    num_devices: what -1 in the mesh is the rest of.

  Raises:
    ConfigError: the mesh has more devices than that.
  """
  sizes = mesh_sizes(config.parallel.mesh, num_devices)
  staged = pipelined_stack(config.model) if sizes['pipeline'] > 1 else ''
  width = np.dtype(jax.numpy.dtype(config.train.compute_dtype)).itemsize
  axes = weight_axes(config.model)['params']
  leaves = jax.tree_util.tree_leaves_with_path(
    abstract_weights(config.model)['params']
  )
  for (path, leaf), names in zip(leaves, jax.tree.leaves(axes), strict=True):
    used, size = names.names, leaf.size
    if path[0].key == staged:
      used = ('stages', *used[1:])
      # A stage is filled up, with layers that aren't there.
      layers = leaf.shape[0]
      size = size // layers * -(-layers // sizes['pipeline'])
      size *= sizes['pipeline']
    weight = rules.axes_of(rules.spec(used, 'weight', sizes))
    master = rules.axes_of(rules.spec(names.names, 'master', sizes, leaf.shape))
    yield Placement(
      name='/'.join(entry.key for entry in path),
      shape=leaf.shape,
      axes=tuple(name or '' for name in names.names),
      weight=tuple(map('+'.join, weight)),
      master=tuple(map('+'.join, master)),
      weight_bytes=size // _parts(weight, sizes) * width,
      master_bytes=leaf.size // _parts(master, sizes) * 4,
    )


def _parts(axes: list[tuple[str, ...]], sizes: dict[str, int]) -> int:
  return math.prod(sizes[axis] for own in axes for axis in own)
