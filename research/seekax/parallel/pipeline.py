"""Pipeline parallelism: 1F1B in lockstep, for stages of any model.

Every stage is a function, and stages may differ: the first can have layers that
others lack, the last can return several outputs. Each rank of the mesh axis
`pipeline` has one stage and runs only that. (On some meshes it runs all kinds
and keeps its own: `mesh.stages_differ`.) All ranks together compute what enters
the first stage and what leaves the last, and may split this work (as they do
with a vocabulary).

A tick is one forward and one backward pass of every stage, each of another
micro-batch. At tick t, stage s of S computes

  the forward pass of micro-batch     t - s,
  the backward pass of micro-batch    t - (2 S - 2 - s),

so the last stage computes both of the same micro-batch, with its loss between
them. A stage keeps only its input of a micro-batch, and recomputes the rest for
the backward pass. It needs the input 2 (S - 1 - s) ticks later, so the first
stage has 2 S - 1 live inputs and the last has one. (Where stages are not in
lockstep, as in PipeDream's 1F1B, a gradient returns after half as many ticks.)
No rank keeps more than S, for any number of micro-batches: as in BPipe (Kim et
al., ICML 2023), stage s of the first half sends each input to stage S - 1 - s,
which has free memory, and gets it back S - 1 ticks before it is used.

A rank that has no micro-batch does nothing: in the first S - 1 ticks there is
no backward pass, in the last S - 1 no forward pass, so that the bubble is that
of 1F1B (arXiv 2104.04473): S - 1 passes of each kind in addition to those of M
micro-batches.

Letters: S stages, M micro-batches.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from seekax.arrays import PyTree
from seekax.parallel.mesh import stages_differ
from seekax.parallel.pipeline_parts import Carry, Model, Rank, Result

AXIS = 'pipeline'


def num_ticks(micro_batches: int, stages: int) -> int:
  """Ticks in a step; a stage has a micro-batch each way in M of them."""
  return micro_batches + 2 * stages - 2


def gradients(
  model: Model,
  outer: PyTree,
  staged: PyTree,
  constants: PyTree,
  micro_batches: PyTree,
  lay_out: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]] = lambda *trees: (
    trees
  ),
) -> Result:
  """Gradients of the sum of the objectives of all micro-batches.

  Args:
    model: functions to run.
    outer: parameters of `enter`, `beside` and `leave`.
    staged: parameters of the stages, [S, ...]; S is the size of the mesh axis.
    constants: other arrays of each stage, [S, ...].
    micro_batches: a tree of [M, ...].
    lay_out: maps (outer, staged) gradients to the same, constrained to a layout
      on the other mesh axes while they are accumulated.

  Returns:
    Gradients and sums.
  """
  ticks = _Ticks(model, outer, staged, constants, micro_batches, lay_out)
  count = jax.tree.leaves(micro_batches)[0].shape[0]
  number = num_ticks(count, len(model.stages))
  carry = jax.lax.fori_loop(0, number, ticks.tick, ticks.start())
  return Result(carry.outer, carry.staged, carry.left, carry.passed)


class _Ticks:
  """The computation of each tick."""

  def __init__(self, model, outer, staged, constants, micro_batches, lay_out):
    self._model, self._outer, self._lay_out = model, outer, lay_out
    self._staged, self._constants = staged, constants
    self._micro_batches = micro_batches
    self._stages = len(model.stages)
    self._count = jax.tree.leaves(micro_batches)[0].shape[0]
    # Ticks until a micro-batch comes back to the first stage.
    self._trip = 2 * self._stages - 2
    self._kinds = list(dict.fromkeys(model.stages))
    kinds = [self._kinds.index(stage) for stage in model.stages]
    # Arrays of their own: in a mesh that is manual over one axis only, not
    # every compiler knows the index along it.
    self._kind_S = jnp.array(kinds)
    self._rank_S = jnp.arange(self._stages)
    self._x, self._out, self._passed, self._sums = jax.eval_shape(self._shapes)

  def start(self) -> Carry:
    """Returns the state before the first tick: zeros."""
    stages = self._stages

    def float32(tree):
      return jax.tree.map(lambda v: jnp.zeros(v.shape, jnp.float32), tree)

    outer, gradients = self._lay_out(
      float32(self._outer), float32(self._staged)
    )
    return Carry(
      y=_zeros(self._x, stages),
      dx=_zeros(self._x, stages),
      kept=_zeros(self._x, stages, stages),
      outer=outer,
      staged=gradients,
      left=_zeros(self._sums),
      passed=_zeros(self._passed, stages),
    )

  def tick(self, t: jax.Array, carry: Carry) -> Carry:
    """Runs stages forward, the loss of what leaves, and stages backward.

    Args:
      t: number of the tick.
      carry: state after the previous tick.
    """
    index = t - (self._stages - 1)
    micro_batch = _micro_batch(self._micro_batches, index)
    beside, beside_vjp = jax.vjp(
      lambda outer: self._model.beside(outer, micro_batch), self._outer
    )
    carry, out = self._all_forward(carry, t, beside)
    left, d_outer, d_out = jax.lax.cond(
      self._there(index),
      self._left,
      lambda outer, out, _: (_zeros(self._sums), *_zeros((outer, out))),
      self._outer,
      out,
      micro_batch,
    )
    carry = dataclasses.replace(carry, left=_added(carry.left, left))
    d_staged, dx, d_beside = self._all_backward(carry, t, beside, d_out)
    d_outer = _added(_float32(d_outer), beside_vjp(d_beside)[0])
    return self._with_gradients(carry, t, d_outer, d_staged, dx)

  def _left(self, outer, out, micro_batch):
    """Sums of `leave`, and the gradients of its parameters and of `out`."""
    _, vjp, left = jax.vjp(
      lambda outer, out: self._model.leave(outer, out, micro_batch),
      outer,
      out,
      has_aux=True,
    )
    return left, *vjp(jnp.ones((), jnp.float32))

  def _shapes(self):
    micro_batch = _micro_batch(self._micro_batches, 0)
    own = jax.tree.map(lambda x: x[0], (self._staged, self._constants))
    x = self._model.enter(self._outer, micro_batch)
    beside = self._model.beside(self._outer, micro_batch)
    _, out, _, passed = self._model.stages[0](*own, x, beside, micro_batch)
    _, left = self._model.leave(self._outer, out, micro_batch)
    return x, out, passed, left

  def _all_forward(self, carry, t, beside):
    """Returns (carry, what leaves the last stage)."""

    def own(mine, arrays, shared):
      y, kept = arrays
      entered, beside, micro_batches, t = shared
      x = jnp.where(mine.rank == 0, entered, self._shifted(y, 1))
      index = t - mine.rank
      beside = self._if_last(mine, beside)

      def run(stage, x):
        micro_batch = _micro_batch(micro_batches, index)
        y, out, _, passed = stage(
          mine.params, mine.constants, x, beside, micro_batch
        )
        return y, out, passed

      def idle(x):
        return jnp.zeros_like(x), _zeros(self._out), _zeros(self._passed)

      found = self._by_kind(mine, index, run, idle, x)
      return *found, self._put_away(kept, mine.rank, t, x)

    entered = self._model.enter(
      self._outer, _micro_batch(self._micro_batches, t)
    )
    y, out, passed, kept = self._on_stages(
      own,
      (carry.y, carry.kept),
      (entered, beside, self._micro_batches, t),
    )
    passed = _added(carry.passed, passed)
    carry = dataclasses.replace(carry, y=y, kept=kept, passed=passed)
    return carry, _of_stage(self._stages - 1, out)

  def _put_away(self, kept, rank, t, x):
    """Puts the stage's input x of this tick into a rank's `kept`.

    Slot (t + 1) % `_own_slots` then holds the input of this tick's backward
    pass: the one that has been there longest.
    """
    stages = self._stages
    pairs = [(s, stages - 1 - s) for s in range(stages) if 2 * s != stages - 1]
    leaves, slots = 2 * rank < stages - 1, self._own_slots(rank)
    # An input stays at another stage for as many ticks as that has slots.
    slot = slots + t % jnp.maximum(stages - slots, 1)
    out = jnp.where(leaves, x, _at(kept, slot))
    got = jax.lax.ppermute(out, AXIS, pairs)
    kept = _set(kept, t % slots, jnp.where(leaves, got, x))
    return _set(kept, slot, jnp.where(slots < stages, got, _at(kept, slot)))

  def _own_slots(self, rank):
    """Slots of a rank for its own inputs; the rest are another stage's."""
    return jnp.minimum(self._stages, 2 * (self._stages - 1 - rank) + 1)

  def _all_backward(self, carry, t, beside, d_out):
    """Gradients of one micro-batch per stage: of parameters, x and `beside`.

    Args:
      carry: state after the tick's forward passes.
      t: number of the tick.
      beside: the last stage's other inputs.
      d_out: gradients of what leaves the last stage.
    """

    def own(mine, arrays, shared):
      dx, kept = arrays
      beside, d_out, micro_batches, t = shared
      index = t - (self._trip - mine.rank)
      given = (
        mine.params,
        _at(kept, (t + 1) % self._own_slots(mine.rank)),
        self._if_last(mine, beside),
      )
      leaving = self._if_last(mine, d_out)

      def run(stage, dy, *given):
        micro_batch = _micro_batch(micro_batches, index)

        def trained(params, x, beside):
          return stage(params, mine.constants, x, beside, micro_batch)[:3]

        _, vjp = jax.vjp(trained, *given)
        return vjp((dy, leaving, jnp.ones((), jnp.float32)))

      def idle(dy, *given):
        del dy
        return jax.tree.map(jnp.zeros_like, given)

      # The last stage's own output goes nowhere, so its dy is 0.
      dy = self._shifted(dx, -1)
      return self._by_kind(mine, index, run, idle, dy, *given)

    d_staged, dx, d_beside = self._on_stages(
      own,
      (carry.dx, carry.kept),
      (beside, d_out, self._micro_batches, t),
    )
    return d_staged, dx, _of_stage(self._stages - 1, d_beside)

  def _with_gradients(self, carry, t, d_outer, d_staged, dx):
    """Adds a tick's gradients to the carry; computes those of `enter`.

    Args:
      carry: state without them.
      t: number of the tick.
      d_outer: gradients of `beside` and `leave`.
      d_staged: gradients of the stages' parameters.
      dx: gradients of the stages' inputs.
    """
    micro_batch = _micro_batch(self._micro_batches, t - self._trip)
    _, vjp = jax.vjp(
      lambda outer: self._model.enter(outer, micro_batch), self._outer
    )
    d_outer = _added(_float32(d_outer), vjp(_of_stage(0, dx))[0])
    d_outer, d_staged = self._lay_out(d_outer, _float32(d_staged))
    return dataclasses.replace(
      carry,
      dx=dx,
      outer=_added(carry.outer, d_outer),
      staged=_added(carry.staged, d_staged),
    )

  def _there(self, index):
    """Whether a micro-batch of this index exists."""
    return (index >= 0) & (index < self._count)

  def _if_last(self, mine, tree):
    """The tree on the last stage, zeros on the others."""
    is_last = mine.rank == self._stages - 1
    return jax.tree.map(
      lambda v: jnp.where(is_last, v, jnp.zeros((), v.dtype)), tree
    )

  def _by_kind(self, mine, index, run, idle, *arguments):
    """Runs the stage's own branch, or `idle` if there is no micro-batch."""
    branches = [functools.partial(run, stage) for stage in self._kinds]
    which = jnp.where(self._there(index), mine.kind, len(branches))
    branches.append(idle)
    if stages_differ():
      return jax.lax.switch(which, branches, *arguments)
    return jax.tree.map(
      lambda *found: jax.lax.select_n(which, *found),
      *(branch(*arguments) for branch in branches),
    )

  def _on_stages(self, function, arrays, shared):
    """Calls a function on every rank; the compiler handles other mesh axes.

    Args:
      function: maps (a stage's `Rank`, its parts of arrays, shared) to a tree
        of the rank's own arrays.
      arrays: a tree of [S, ...].
      shared: a tree of arrays that every rank has whole.

    Returns:
      A tree of arrays [S, ...].
    """
    stages = Rank(self._staged, self._constants, self._rank_S, self._kind_S)

    def local(mine, shared):
      result = function(*jax.tree.map(lambda x: x[0], mine), shared)
      return jax.tree.map(lambda x: x[None], result)

    split, whole = PartitionSpec(AXIS), PartitionSpec()
    return jax.shard_map(
      local,
      in_specs=(split, whole),
      out_specs=split,
      axis_names={AXIS},
      check_vma=False,
    )((stages, arrays), shared)

  def _shifted(self, x, by: int):
    """x of the stage before (by=1) or after (by=-1); 0 where there is none."""
    ranks = range(self._stages)
    pairs = [(rank, rank + by) for rank in ranks if rank + by in ranks]
    return jax.lax.ppermute(x, AXIS, pairs)


def _of_stage(stage: int, tree: PyTree) -> PyTree:
  """One stage's part of arrays [S, ...], on every rank.

  It is computed as the sum of that part and of zeros, in its dtype.
  """

  def one(x_S):
    own_S = jnp.arange(x_S.shape[0]) == stage
    own_S = own_S.reshape(-1, *([1] * (x_S.ndim - 1)))
    only = jnp.where(own_S, x_S, jnp.zeros((), x_S.dtype))
    return jax.lax.reduce_sum(only, (0,))

  return jax.tree.map(one, tree)


def _zeros(tree: PyTree, *leading: int) -> PyTree:
  return jax.tree.map(lambda v: jnp.zeros((*leading, *v.shape), v.dtype), tree)


def _micro_batch(micro_batches, index):
  """One micro-batch; any of them for an index that is out of range."""
  return jax.tree.map(
    lambda x: _at(x, jnp.clip(index, 0, x.shape[0] - 1)), micro_batches
  )


def _at(x, index):
  return jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False)


def _set(x, index, value):
  return jax.lax.dynamic_update_index_in_dim(x, value, index, 0)


def _float32(tree):
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _added(tree, other):
  return jax.tree.map(jnp.add, tree, other)
