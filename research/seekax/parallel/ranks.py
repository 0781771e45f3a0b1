"""Each rank of a batch computes its gradients alone; they are summed once.

In arrays that the compiler lays out, a gradient is summed over all ranks as
soon as it is computed, for every micro-batch. Here every rank of the batch
computes as if it were alone, on its own sequences, and accumulates its
gradients; until the end of a step the ranks only exchange tokens with each
other's experts (ZeRO-1, arXiv 1910.02054: one sum, whose parts are on the ranks
that hold the same part of the optimizer's state).

`fsdp` isn't among these ranks: it also splits weights, which are gathered where
they are used, and whose gradients are scattered there.

A partial sum has a leading axis with one entry for each of the ranks that it is
still to be summed over. Without such ranks it has no such axis.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from seekax.arrays import PyTree
from seekax.configuration.mesh import BATCH_AXES
from seekax.parallel import mesh, rules

_AXES = tuple(axis for axis in BATCH_AXES if axis != 'fsdp')


def rank_axes() -> tuple[str, ...]:
  """Mesh axes above size 1 whose ranks can compute alone."""
  sizes = mesh.current_sizes()
  return tuple(axis for axis in _AXES if axis in sizes)


def apart(
  fn: Callable[..., tuple[PyTree, PyTree]], inputs: PyTree, names: PyTree
) -> Callable[..., tuple[PyTree, PyTree]]:
  """Runs fn on every rank alone; the compiler handles the other mesh axes.

  Inside, `rules` only uses the other axes, so `rules.total` over the batch is
  the sum over one rank's part. Without ranks this is fn.

  Args:
    fn: returns (arrays, sums). Gradients have to be computed inside it; arrays
      are partial sums over the ranks.
    inputs: for each argument, the `Names` of its axes, one for all its arrays
      or a tree; `axes()` where every rank has it whole.
    names: likewise, for the arrays that fn returns.

  Returns:
    A function of whole arguments that returns (partial sums of the arrays, the
    sums, summed over all ranks).
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
  # Includes axes of size 1; otherwise the compiler would have arrays to split.
  manual = set(jax.sharding.get_abstract_mesh().axis_names) - shared
  return jax.shard_map(
    alone,
    in_specs=jax.tree.map(_own_spec, inputs),
    out_specs=(jax.tree.map(_as_parts, names), PartitionSpec()),
    axis_names=manual,
    check_vma=False,
  )


def as_partial(arrays: PyTree, names: PyTree) -> PyTree:
  """Inside `apart`: lays arrays out as gradients during accumulation."""
  return rules.constrain_all(arrays, names, 'gradient')


def summed(partial: PyTree, names: PyTree, specs: PyTree = None) -> PyTree:
  """Sums partial sums over their ranks and lays them out as masters.

  Each rank gets only its part of the sum, where the master has an axis that
  divides accordingly.

  Args:
    partial: a tree, from `apart` or accumulated from several calls.
    names: names of its arrays' axes, without the leading one.
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


def zeros(arrays: PyTree, names: PyTree) -> PyTree:
  """Partial sums that are zero, float32.

  Args:
    arrays: a tree whose leaves have the shapes of the whole arrays.
    names: names of their axes.
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
  """[R, ...] to [...]: each rank's part of the sum on that rank."""
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
  """The ranks that an array is summed over, not those that split it."""
  own = {axis for part in rules.axes_of(_own_spec(names)) for axis in part}
  return tuple(axis for axis in rank_axes() if axis not in own)


def _own_spec(names) -> PartitionSpec:
  """How an argument is split over the ranks."""
  sizes = mesh.current_sizes()
  return rules.spec(
    names.names, sizes={axis: sizes[axis] for axis in rank_axes()}
  )


def _as_parts(names) -> PartitionSpec:
  """The layout in which `apart` joins the ranks' results."""
  return PartitionSpec(_summed_over(names), *_own_spec(names))
