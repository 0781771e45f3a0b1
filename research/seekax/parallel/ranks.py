"""Gradients of the ranks of a batch, each by itself, summed once.

Arrays that the compiler lays out are whole: it sums a gradient over all ranks
as soon as there is one, with every micro-batch. Here every rank of the batch
computes as if it were alone, on its own sequences, and adds up what it finds;
the ranks exchange tokens with each other's experts and nothing else until a
step's end (ZeRO-1, arXiv 1910.02054: one sum, whose parts lie where the
optimizer's state does).

`fsdp` isn't among these ranks: it splits weights too, which are gathered, and
whose gradients are scattered, where they are used.

A partial sum has a leading axis of the ranks that it is to be summed over, one
entry each. Without such ranks it has none.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from seekax.configuration.mesh import BATCH_AXES
from seekax.parallel import mesh, rules

_AXES = tuple(axis for axis in BATCH_AXES if axis != 'fsdp')


def rank_axes() -> tuple[str, ...]:
  """The mesh axes of more than one device whose ranks can work apart."""
  sizes = mesh.current_sizes()
  return tuple(axis for axis in _AXES if axis in sizes)


def apart(
  fn: Callable[..., tuple[Any, Any]], inputs: Any, names: Any
) -> Callable[..., tuple[Any, Any]]:
  """fn on every rank by itself; the rest of the mesh stays the compiler's.

  Inside, `rules` knows of the other axes alone: `rules.total` over the batch is
  the sum of a rank's own. Without ranks, fn.

  Args:
    fn: to (arrays, sums): what has to be differentiated is differentiated in
      it, and adds up over the ranks.
    inputs: for each argument the `Names` of its axes, of all arrays in it or
      as a tree; `axes()` where ranks have it whole.
    names: of the axes of the arrays, the same.

  Returns:
    Of whole arguments: (partial sums of the arrays; the sums, summed over all
    ranks).
  """
  ranks = rank_axes()

  def alone(*arguments):
    token = mesh.APART.set(frozenset(ranks))
    try:
      arrays, sums = fn(*arguments)
      arrays = as_partial(arrays, names)
    finally:
      mesh.APART.reset(token)
    if not ranks:
      return arrays, sums
    return jax.tree.map(lambda x: x[None], arrays), jax.lax.psum(sums, ranks)

  if not ranks:
    return alone
  shared = set(mesh.current_sizes()).difference(ranks)
  # Axes of one device too, or the compiler would still have arrays to split.
  manual = set(jax.sharding.get_abstract_mesh().axis_names) - shared
  return jax.shard_map(
    alone,
    in_specs=jax.tree.map(_own_spec, inputs),
    out_specs=(jax.tree.map(_as_parts, names), PartitionSpec()),
    axis_names=manual,
    check_vma=False,
  )


def as_partial(arrays: Any, names: Any) -> Any:
  """Inside `apart`: laid out as gradients that are being added up."""
  return rules.constrain_all(arrays, names, 'gradient')


def summed(partial: Any, names: Any, specs: Any = None) -> Any:
  """Partial sums, summed over their ranks and laid out as masters.

  Each rank gets its part of the sum and nothing else, where the master has an
  axis that divides so.

  Args:
    partial: a tree, from `apart` or added up from several.
    names: of the axes of its arrays, without the leading one.
    specs: another layout than that of masters.
  """
  ranks, sizes = rank_axes(), mesh.current_sizes()

  def master(x, own):
    return rules.spec(own.names, 'master', shape=x.shape[bool(ranks) :])

  def one(x, own, spec):
    if ranks:
      x = _scattered(x, own, spec)
    return jax.lax.with_sharding_constraint(x, spec) if sizes else x

  specs = jax.tree.map(master, partial, names) if specs is None else specs
  return jax.tree.map(one, partial, names, specs)


def zeros(arrays: Any, names: Any) -> Any:
  """Partial sums of nothing, float32.

  Args:
    arrays: a tree of what has the shapes of the whole arrays.
    names: of their axes.
  """
  sizes = mesh.current_sizes()

  def one(x, own):
    spec = rules.spec(own.names, 'gradient', shape=x.shape)
    shape = x.shape
    if rank_axes():
      over = _summed_over(own)
      spec = PartitionSpec(over, *spec)
      shape = (math.prod(sizes[axis] for axis in over), *shape)
    zero = jnp.zeros(shape, jnp.float32)
    return jax.lax.with_sharding_constraint(zero, spec) if sizes else zero

  return jax.tree.map(one, arrays, names)


def _scattered(x, names, spec):
  """[R, ...] to [...]: every rank's part of the sum on that rank."""
  over = _summed_over(names)
  parts = rules.axes_of(spec)
  before = [tuple(axis for axis in part if axis not in over) for part in parts]

  def local(x):
    x, left = x[0], over
    for i, part in enumerate(parts):
      here = tuple(axis for axis in part if axis in over)
      if here:
        x = jax.lax.psum_scatter(x, here, scatter_dimension=i, tiled=True)
        left = tuple(axis for axis in left if axis not in here)
    return jax.lax.psum(x, left) if left else x

  return jax.shard_map(
    local,
    in_specs=PartitionSpec(over, *before),
    out_specs=spec,
    check_vma=False,
  )(x)


def _summed_over(names) -> tuple[str, ...]:
  """The ranks that have a part each in an array's sum, and not of the array."""
  own = {axis for part in rules.axes_of(_own_spec(names)) for axis in part}
  return tuple(axis for axis in rank_axes() if axis not in own)


def _own_spec(names) -> PartitionSpec:
  """How an argument is split over the ranks."""
  sizes = mesh.current_sizes()
  return rules.spec(
    names.names, sizes={axis: sizes[axis] for axis in rank_axes()}
  )


def _as_parts(names) -> PartitionSpec:
  """How `apart` puts the ranks' results together."""
  return PartitionSpec(_summed_over(names), *_own_spec(names))
