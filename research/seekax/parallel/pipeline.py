"""Pipeline parallelism: 1F1B in lockstep, knowing no model.

Every stage is a function, and stages may differ: the first can have layers that
others lack, the last what is made of several of its outputs. They lie over the
mesh axis `pipeline`, one each, and a rank runs its own and nothing else. (On
some meshes it runs all kinds and keeps its own: `mesh.stages_differ`.) What
enters the first and what leaves the last is computed by all ranks together, who
may share it out among themselves (as they do with a vocabulary).

A tick is one forward pass of every stage and one backward pass, each of another
micro-batch. At tick t stage s of S

  makes forward the micro-batch       t - s,
  makes backward the micro-batch      t - (2 S - 2 - s),

so that the last stage makes both of the same one, with its loss between them.
A stage keeps of a micro-batch its input alone, and computes the rest again for
the backward pass. It needs it 2 (S - 1 - s) ticks later, so that the first one
has 2 S - 1 inputs alive and the last has one. (Where stages are not in
lockstep, as in PipeDream's 1F1B, a gradient comes back after half as many
ticks.) No rank keeps more than S, whatever the number of micro-batches: as in
BPipe (Kim et al., ICML 2023), stage s of the first half leaves each input with
stage S - 1 - s, which has room to spare, and takes it back S - 1 ticks before
its use.

A rank that has no micro-batch does nothing: in the first S - 1 ticks nothing
goes backward, in the last S - 1 nothing forward, so that the bubble is that of
1F1B (arXiv 2104.04473): S - 1 passes of each kind beside those of M
micro-batches.

Letters: S stages, M micro-batches.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from seekax.parallel.mesh import stages_differ

AXIS = 'pipeline'


@dataclasses.dataclass(frozen=True)
class Model:
  """What a pipeline runs. Sums are trees of numbers that nobody trains on.

  Attributes:
    enter: (outer parameters, micro-batch) to the first stage's input x.
    beside: (outer parameters, micro-batch) to what else the last stage reads, a
      tree; others get zeros.
    stages: (a stage's parameters, its constants, x, beside, micro-batch) to
      (x, a tree that leaves, a float32 scalar that is added to the objective,
      sums). One for each stage; equal stages are the same function, and what
      all of them return has the same shapes.
    leave: (outer parameters, what leaves the last stage, micro-batch) to
      (float32 scalar, sums).
  """

  enter: Callable[..., jax.Array]
  beside: Callable[..., Any]
  stages: Sequence[Callable[..., tuple[jax.Array, Any, jax.Array, Any]]]
  leave: Callable[..., tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class Result:
  """Of all micro-batches.

  Attributes:
    outer: gradients of the outer parameters, float32.
    staged: those of the stages' parameters, float32 [S, ...].
    left: sums of `leave`.
    passed: sums of every stage, [S, ...].
  """

  outer: Any
  staged: Any
  left: Any
  passed: Any


def num_ticks(micro_batches: int, stages: int) -> int:
  """Of a step; in M of them a stage has a micro-batch for each direction."""
  return micro_batches + 2 * stages - 2


def gradients(
  model: Model,
  outer: Any,
  staged: Any,
  constants: Any,
  micro_batches: Any,
  lay_out: Callable[[Any, Any], tuple[Any, Any]] = lambda *trees: trees,
) -> Result:
  """Gradients of the sum of the objectives of all micro-batches.

  Args:
    model: what is run.
    outer: parameters of `enter`, `beside` and `leave`.
    staged: those of the stages, [S, ...]; S is the size of the mesh axis.
    constants: what else a stage has of its own, [S, ...].
    micro_batches: a tree of [M, ...].
    lay_out: of (outer, staged) gradients: constrains how they lie on the other
      mesh axes while they are added up.

  Returns:
    Gradients and sums.
  """
  ticks = _Ticks(model, outer, staged, constants, micro_batches, lay_out)
  count = jax.tree.leaves(micro_batches)[0].shape[0]
  number = num_ticks(count, len(model.stages))
  carry = jax.lax.fori_loop(0, number, ticks.tick, ticks.start())
  return Result(carry.outer, carry.staged, carry.left, carry.passed)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['y', 'dx', 'kept', 'outer', 'staged', 'left', 'passed'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class _Carry:
  """What goes from tick to tick.

  Attributes:
    y: outputs of the stages, [S, ...].
    dx: gradients of their inputs, [S, ...].
    kept: inputs of the stages that are to be used again, [S, S, ...]: a rank
      has S slots, some of them for another stage's.
    outer: so far, as the rest, which is that of `Result`.
    staged: so far.
    left: so far.
    passed: so far.
  """

  y: jax.Array
  dx: jax.Array
  kept: jax.Array
  outer: Any
  staged: Any
  left: Any
  passed: Any


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['params', 'constants', 'rank', 'kind'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class _Rank:
  """What a rank of the pipeline has, or all of them, [S, ...].

  Attributes:
    params: of its stage.
    constants: of its stage.
    rank: its number, and its stage's.
    kind: which of the different functions its stage is.
  """

  params: Any
  constants: Any
  rank: jax.Array
  kind: jax.Array


class _Ticks:
  """What happens in a tick."""

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
    # In arrays of their own: inside a mesh that is manual in one axis alone,
    # not every compiler knows the index along it.
    self._kind_S = jnp.array(kinds)
    self._rank_S = jnp.arange(self._stages)
    self._x, self._out, self._passed, self._sums = jax.eval_shape(self._shapes)

  def start(self) -> _Carry:
    """Zeros of everything."""
    stages = self._stages

    def float32(tree):
      return jax.tree.map(lambda v: jnp.zeros(v.shape, jnp.float32), tree)

    outer, gradients = self._lay_out(
      float32(self._outer), float32(self._staged)
    )
    return _Carry(
      y=_zeros(self._x, stages),
      dx=_zeros(self._x, stages),
      kept=_zeros(self._x, stages, stages),
      outer=outer,
      staged=gradients,
      left=_zeros(self._sums),
      passed=_zeros(self._passed, stages),
    )

  def tick(self, t: jax.Array, carry: _Carry) -> _Carry:
    """Stages forward, the loss of what comes out, stages backward.

    Args:
      t: the tick's number.
      carry: of the ticks before.
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
    """(carry, what leaves the last stage)."""

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
    """A rank's `kept` with the input x of its stage in this tick.

    Slot (t + 1) % `_own_slots` then holds the input of its backward pass of
    this tick: the one that it put there longest ago.
    """
    stages = self._stages
    pairs = [(s, stages - 1 - s) for s in range(stages) if 2 * s != stages - 1]
    leaves, slots = 2 * rank < stages - 1, self._own_slots(rank)
    # An input lies with another stage for as many ticks as that has slots.
    slot = slots + t % jnp.maximum(stages - slots, 1)
    out = jnp.where(leaves, x, _at(kept, slot))
    got = jax.lax.ppermute(out, AXIS, pairs)
    kept = _set(kept, t % slots, jnp.where(leaves, got, x))
    return _set(kept, slot, jnp.where(slots < stages, got, _at(kept, slot)))

  def _own_slots(self, rank):
    """Slots of a rank for its own inputs; the rest are for another stage's."""
    return jnp.minimum(self._stages, 2 * (self._stages - 1 - rank) + 1)

  def _all_backward(self, carry, t, beside, d_out):
    """Gradients of a micro-batch per stage: of parameters, x and `beside`.

    Args:
      carry: after the forward passes of the tick.
      t: the tick.
      beside: of the last stage.
      d_out: gradients of what leaves it.
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

      # Of the last stage, whose own output goes nowhere, dy is 0.
      dy = self._shifted(dx, -1)
      return self._by_kind(mine, index, run, idle, dy, *given)

    d_staged, dx, d_beside = self._on_stages(
      own,
      (carry.dx, carry.kept),
      (beside, d_out, self._micro_batches, t),
    )
    return d_staged, dx, _of_stage(self._stages - 1, d_beside)

  def _with_gradients(self, carry, t, d_outer, d_staged, dx):
    """The carry with the gradients of a tick, those of `enter` made here.

    Args:
      carry: without them.
      t: the tick.
      d_outer: gradients of `beside` and `leave`.
      d_staged: those of the stages.
      dx: of their inputs.
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
    """Whether there is such a micro-batch."""
    return (index >= 0) & (index < self._count)

  def _if_last(self, mine, tree):
    """A tree on the last stage, zeros on others."""
    is_last = mine.rank == self._stages - 1
    return jax.tree.map(
      lambda v: jnp.where(is_last, v, jnp.zeros((), v.dtype)), tree
    )

  def _by_kind(self, mine, index, run, idle, *arguments):
    """The stage's own branch, or `idle` if there is no such micro-batch."""
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
    """Calls it on every rank; the rest of the mesh is the compiler's.

    Args:
      function: of (a stage's `_Rank`, its parts of arrays, shared) to a tree
        of arrays of its own.
      arrays: a tree of [S, ...].
      shared: a tree of what every rank has whole.

    Returns:
      A tree of arrays [S, ...].
    """
    stages = _Rank(self._staged, self._constants, self._rank_S, self._kind_S)

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
    """x of the stage before (1) or after (-1); 0 where there is none."""
    ranks = range(self._stages)
    pairs = [(rank, rank + by) for rank in ranks if rank + by in ranks]
    return jax.lax.ppermute(x, AXIS, pairs)


def _of_stage(stage: int, tree: Any) -> Any:
  """One stage's part of arrays [S, ...], on every rank.

  Each is a sum of that part and of zeros, in its dtype.
  """

  def one(x_S):
    own_S = jnp.arange(x_S.shape[0]) == stage
    own_S = own_S.reshape(-1, *([1] * (x_S.ndim - 1)))
    only = jnp.where(own_S, x_S, jnp.zeros((), x_S.dtype))
    return jax.lax.reduce_sum(only, (0,))

  return jax.tree.map(one, tree)


def _zeros(tree: Any, *leading: int) -> Any:
  return jax.tree.map(lambda v: jnp.zeros((*leading, *v.shape), v.dtype), tree)


def _micro_batch(micro_batches, index):
  """One of them; any for an index that is out of range."""
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
