"""How every parameter of a model is split on a mesh that needn't exist."""

from collections.abc import Iterator
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from seekax.configuration.config import Config
from seekax.configuration.mesh import mesh_sizes
from seekax.model.parameters import abstract_weights, cast_params, weight_axes
from seekax.model.stack import pipelined_stack
from seekax.ops import precision
from seekax.parallel import rules
from seekax.training.stages import layer_counts
from seekax.training.state import abstract_state


@dataclasses.dataclass(frozen=True)
class Placement:
  """How one array is split.

  Attributes:
    name: its path.
    shape: shape of the whole array.
    axes: logical name of each axis, '' for none.
    weight: mesh axes of each axis when the weight is used, '' for none.
    master: mesh axes of each axis of the float32 master, '' for none.
    weight_bytes: bytes per device, in the dtype in which it is used.
    master_bytes: bytes per device, float32, without the optimizer's moments.
    gradient_bytes: bytes per device of the float32 sum over micro-batches.
  """

  name: str
  shape: tuple[int, ...]
  axes: tuple[str, ...]
  weight: tuple[str, ...]
  master: tuple[str, ...]
  weight_bytes: int
  master_bytes: int
  gradient_bytes: int


def placements(config: Config, num_devices: int) -> Iterator[Placement]:
  """Yields every parameter of the model and its MTP modules.

  Args:
    config: the run's config, with its mesh.
    num_devices: number of devices, which -1 in the mesh is computed from.

  Raises:
    ConfigError: the mesh needs another number of devices.
  """
  sizes = mesh_sizes(config.parallel.mesh, num_devices)
  staged = pipelined_stack(config.model) if sizes['pipeline'] > 1 else ''
  cast = functools.partial(
    cast_params,
    dtype=jnp.dtype(config.train.compute_dtype),
    policy=precision.for_training(config),
  )
  axes = weight_axes(config.model).params
  params = abstract_weights(config.model).params
  used_axes, counts = axes, []
  if staged:
    used_axes = {
      **axes,
      staged: jax.tree.map(
        lambda own: rules.axes('stages', *own.names[1:]), axes[staged]
      ),
    }
    counts = layer_counts(config.model, sizes['pipeline'])
  for (path, leaf), as_used, names, used in zip(
    jax.tree_util.tree_leaves_with_path(params),
    jax.tree.leaves(jax.eval_shape(cast, params)),
    jax.tree.leaves(axes),
    jax.tree.leaves(used_axes),
    strict=True,
  ):
    size = leaf.size
    if path[0].key == staged:
      # Every stage allocates as many layers as the fullest one has.
      size = size // leaf.shape[0] * max(counts) * len(counts)
    weight = rules.axes_of(rules.spec(used.names, 'weight', sizes))
    gradient = rules.axes_of(rules.spec(used.names, 'gradient', sizes))
    master = rules.axes_of(rules.spec(names.names, 'master', sizes, leaf.shape))
    yield Placement(
      name='/'.join(entry.key for entry in path),
      shape=leaf.shape,
      axes=tuple(name or '' for name in names.names),
      weight=tuple(map('+'.join, weight)),
      master=tuple(map('+'.join, master)),
      weight_bytes=size // _parts(weight, sizes) * as_used.dtype.itemsize,
      master_bytes=leaf.size // _parts(master, sizes) * 4,
      gradient_bytes=size // _parts(gradient, sizes) * 4,
    )


def state_bytes(config: Config, num_devices: int) -> int:
  """Bytes of a training state on one device, computed from `placements`.

  The state is masters, moments (split as their masters are), selection biases
  and scalars.
  """
  state = abstract_state(config)
  of_name = {one.name: one for one in placements(config, num_devices)}

  def local(path, leaf) -> int:
    keys = [str(getattr(entry, 'key', entry)) for entry in path]
    # A moment's path ends with its parameter's path.
    names = ('/'.join(keys[i:]) for i in range(len(keys)))
    own = next((of_name[name] for name in names if name in of_name), None)
    size = leaf.size * leaf.dtype.itemsize
    if own is None or leaf.shape != own.shape:
      return size
    return size * own.master_bytes // (math.prod(own.shape) * 4)

  return sum(
    local(path, leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  )


def _parts(axes: list[tuple[str, ...]], sizes: dict[str, int]) -> int:
  return math.prod(sizes[axis] for own in axes for axis in own)
