"""The table from logical axes to mesh axes, and the layouts it implies.

Every array's axes have names. The table says for each name which mesh axes
split it: in activations, in weights where they are used, in gradients while
they are accumulated, and in masters, which are the float32 parameters and the
optimizer's state (ZeRO, arXiv 1910.02054). Masters are split over the ranks of
the batch too; a step gathers weights from them in the compute dtype and
scatters gradients to them.
"""

from collections.abc import Callable
import contextvars
import dataclasses
import math
from typing import Literal

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seekax.arrays import PyTree
from seekax.configuration.mesh import BATCH_AXES
from seekax.parallel.mesh import APART, current_sizes, shared_sizes

# In these roles an array's axes only use mesh axes that divide them.
_DIVIDED = 'gradient', 'master'
Role = Literal['activation', 'weight', 'gradient', 'master']


@dataclasses.dataclass(frozen=True)
class Rule:
  """The mesh axes that split one logical axis, in each role."""

  activation: tuple[str, ...] = ()
  weight: tuple[str, ...] = ()
  gradient: tuple[str, ...] = ()
  master: tuple[str, ...] = ()


def _same(*axes: str) -> Rule:
  return Rule(axes, axes, axes, axes)


# Weights are gathered over `weight` where they are used; masters are split over
# more axes, tried in this order. An array uses a mesh axis once: the first of
# its axes that the mesh axis divides takes it. Ranks whose gradients are summed
# at the end of a step (`ranks.apart`) come last.
_EMBED = Rule(
  weight=('fsdp',),
  gradient=('fsdp',),
  master=('fsdp', 'pipeline', 'data', 'expert_node', 'expert'),
)

RULES: dict[str, Rule] = {
  'batch': Rule(activation=BATCH_AXES),
  'length': _same('context'),
  'stages': _same('pipeline'),
  # Layers run one after the other; `dealing` divides them among the stages.
  'layers': Rule(),
  'embed': _EMBED,
  'latent': dataclasses.replace(_EMBED, weight=()),
  # All stages share one copy of each table and compute logits together.
  'vocab': _same('pipeline'),
  'heads': _same('tensor'),
  'head_width': Rule(),
  'mlp': _same('tensor'),
  'experts': _same('expert_node', 'expert'),
  'choices': Rule(),
}


@dataclasses.dataclass(frozen=True)
class Names:
  """Logical names of one array's axes; None for an axis that isn't split."""

  names: tuple[str | None, ...]


def axes(*names: str | None) -> Names:
  """Names of an argument's axes, for `per_shard`."""
  return Names(names)


def spec(
  names: tuple[str | None, ...],
  role: Role = 'activation',
  sizes: dict[str, int] | None = None,
  shape: tuple[int, ...] = (),
) -> PartitionSpec:
  """Mesh axes of an array whose axes have these logical names.

  Args:
    names: name of each axis of the array; None for one that isn't split.
    role: what the array is.
    sizes: size of each mesh axis; those of the current mesh if None. An axis of
      size 1 is left out.
    shape: shape of the array. If it is given, an axis of a gradient or master
      uses only mesh axes that divide it and that split none of the weight's
      other axes, with `pipeline` innermost. An activation's axis uses all of
      its mesh axes or, where they don't divide it, none: then every device has
      it whole.

  Raises:
    KeyError: a name isn't in the table.
    ValueError: one mesh axis would split two axes of an activation or weight.
  """
  sizes = shared_sizes() if sizes is None else sizes
  taken: set[str] = set()
  entries = []

  def of(name, role):
    own = getattr(RULES[name], role) if name else ()
    return tuple(axis for axis in own if sizes.get(axis, 1) > 1)

  as_used = [axis for name in names for axis in of(name, 'weight')]
  for i, name in enumerate(names):
    split = of(name, role)
    twice = taken.intersection(split)
    if twice and role not in _DIVIDED:
      raise ValueError(f'logical axes {names} use the mesh axes {twice} twice')
    if shape and role in _DIVIDED:
      others = set(as_used).difference(of(name, 'weight'))
      split = _dividing(split, taken | others, sizes, shape[i])
      split = _innermost('pipeline', split)
    elif shape and role == 'activation':
      parts = math.prod(sizes[axis] for axis in split)
      split = () if shape[i] % parts else split
    taken.update(split)
    entries.append(split if len(split) > 1 else (split[0] if split else None))
  return PartitionSpec(*entries)


def _innermost(last: str, split: tuple[str, ...]) -> tuple[str, ...]:
  """Puts one mesh axis last, so that the parts along it are adjacent.

  Between masters and pipeline stages, parts then move over this axis only.
  """
  return tuple(sorted(split, key=lambda axis: axis == last))


def _dividing(split, taken, sizes, width) -> tuple[str, ...]:
  """The free mesh axes that divide a width, one after the other."""
  chosen = []
  for axis in split:
    if axis not in taken and width % sizes[axis] == 0:
      width //= sizes[axis]
      chosen.append(axis)
  return tuple(chosen)


def axes_of(spec: PartitionSpec) -> list[tuple[str, ...]]:
  """The mesh axes of each array axis, as tuples."""
  return [
    entry if isinstance(entry, tuple) else ((entry,) if entry else ())
    for entry in spec
  ]


def sharding(
  mesh: Mesh,
  names: tuple[str | None, ...],
  role: Role = 'activation',
  shape: tuple[int, ...] = (),
) -> NamedSharding:
  """The layout on the mesh of an array with these logical axes."""
  return NamedSharding(mesh, spec(names, role, dict(mesh.shape), shape))


def constrain(
  x: jax.Array, *names: str | None, role: Role = 'activation'
) -> jax.Array:
  """Asks the compiler to lay x out by its axes' names; on one device, x."""
  sizes = shared_sizes()
  if not sizes:
    return x
  return jax.lax.with_sharding_constraint(x, spec(names, role, sizes, x.shape))


def constrain_all(arrays: PyTree, names: PyTree, role: Role) -> PyTree:
  """Constrains a tree of arrays by a tree of `Names`."""
  return jax.tree.map(
    lambda x, own: constrain(x, *own.names, role=role), arrays, names
  )


# Mesh axes of the `per_shard` that is being traced that split nothing, because
# they don't divide an axis.
_WHOLE: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar(
  'whole', default=frozenset()
)


def per_shard(
  fn: Callable[..., PyTree], inputs: PyTree, outputs: PyTree
) -> Callable[..., PyTree]:
  """Runs fn on each device's own part of its arguments; on one device, fn.

  An input that isn't split is gathered before, and its gradient summed after.
  An output that isn't split must be equal on every device: `total` makes it so.
  Kernels and sorts belong in here, because the compiler can't split them and
  would gather their operands.

  An axis that its mesh axes don't divide, such as the batch of one prompt, is
  whole in all arguments. In a pipeline stage only the stage's devices count.

  Args:
    fn: a function of arrays, written for one part.
    inputs: for each argument, the `Names` of its axes, or a tree of them.
    outputs: likewise, for what it returns.
  """

  def call(*arguments):
    sizes = shared_sizes()
    if not sizes:
      return fn(*arguments)
    whole = set()
    for names, x in zip(
      jax.tree.leaves(inputs), jax.tree.leaves(arguments), strict=True
    ):
      for name, width in zip(names.names, x.shape, strict=True):
        if name and width % num_parts(name):
          whole.add(name)

    def to_spec(names):
      return spec(tuple(None if n in whole else n for n in names.names))

    def with_whole(*parts):
      token = _WHOLE.set(frozenset(whole))
      try:
        return fn(*parts)
      finally:
        _WHOLE.reset(token)

    free = _free_axes()
    if not free:
      return with_whole(*arguments)
    return jax.shard_map(
      with_whole,
      in_specs=jax.tree.map(to_spec, inputs),
      out_specs=jax.tree.map(to_spec, outputs),
      axis_names=free,
      check_vma=False,
    )(*arguments)

  return call


def _free_axes() -> set[str]:
  """The mesh axes that no enclosing shard_map has taken."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
  return {axis for axis, kind in kinds if kind != AxisType.Manual}


def total(x: PyTree, *names: str) -> PyTree:
  """Inside `per_shard`: the sum over the parts of these logical axes."""
  split = mesh_axes(*names)
  return jax.lax.psum(x, split) if split else x


def num_parts(*names: str) -> int:
  """Number of parts that these axes of an activation are split into."""
  sizes = shared_sizes()
  return math.prod(sizes[axis] for axis in mesh_axes(*names))


def parts_apart(*names: str) -> int:
  """Number of parts that these axes are split into by ranks that work alone."""
  sizes, ranks = current_sizes(), APART.get()
  return math.prod(
    sizes[axis]
    for name in names
    for axis in RULES[name].activation
    if axis in ranks
  )


def mesh_axes(*names: str) -> tuple[str, ...]:
  """The mesh axes that split these axes of an activation."""
  sizes = shared_sizes()
  return tuple(
    axis
    for name in names
    if name not in _WHOLE.get()
    for axis in RULES[name].activation
    if axis in sizes
  )
