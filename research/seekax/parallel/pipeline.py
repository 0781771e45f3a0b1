"""Pipeline parallelism: 1F1B in lockstep, knowing no model.

A model is three functions: `enter` makes the input of the first stage,
`stage` is a slice of equal layers, `leave` makes of the last stage's output a
loss. Stages lie over the mesh axis `pipeline`, one each; whatever enters and
leaves is computed by all of its ranks together, who may share it out among
themselves (as they do with a vocabulary).

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

The first S - 1 ticks have no backward pass and the last S - 1 no forward pass,
so that the bubble is that of 1F1B (arXiv 2104.04473): S - 1 passes of each kind
beside those of M micro-batches.

Letters: S stages, M micro-batches.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

AXIS = 'pipeline'


@dataclasses.dataclass(frozen=True)
class Model:
  """What a pipeline runs. Sums are trees of numbers that nobody trains on.

  Attributes:
    enter: (outer parameters, micro-batch) to the first stage's input x.
    stage: (a stage's parameters, its constants, x, micro-batch) to (x, a
      float32 scalar that is added to the objective, sums).
    leave: (outer parameters, x, micro-batch) to (float32 scalar, sums).
  """

  enter: Callable[..., jax.Array]
  stage: Callable[..., tuple[jax.Array, jax.Array, Any]]
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


def padded(x: jax.Array, stages: int) -> jax.Array:
  """[N, ...] to [S, ceil(N / S), ...]; what is added at the end is 0."""
  each = -(-x.shape[0] // stages)
  padding = [(0, stages * each - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
  return jnp.pad(x, padding).reshape(stages, each, *x.shape[1:])


def unpadded(x: jax.Array, length: int) -> jax.Array:
  """The inverse of `padded`."""
  return x.reshape(-1, *x.shape[2:])[:length]


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
    outer: parameters of `enter` and `leave`.
    staged: those of the stages, [S, ...]; S is the size of the mesh axis.
    constants: what else a stage has of its own, [S, ...].
    micro_batches: a tree of [M, ...].
    lay_out: of (outer, staged) gradients: constrains how they lie on the other
      mesh axes while they are added up.

  Returns:
    Gradients and sums.
  """
  stages = jax.tree.leaves(staged)[0].shape[0]
  count = jax.tree.leaves(micro_batches)[0].shape[0]
  ticks = _Ticks(model, outer, staged, constants, micro_batches, lay_out)
  carry = ticks.start()
  warm, steady = stages - 1, count + stages - 1
  for passes, first, end in (
    (ticks.forward, 0, warm),
    (ticks.both, warm, steady),
    (ticks.backward, steady, steady + stages - 1),
  ):
    carry, _ = jax.lax.scan(
      lambda carry, t, passes=passes: (passes(carry, t), None),
      carry,
      jnp.arange(first, end),
    )
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


class _Ticks:
  """The kinds of ticks: carry and number of the tick to the next carry."""

  def __init__(self, model, outer, staged, constants, micro_batches, lay_out):
    self._model, self._outer, self._lay_out = model, outer, lay_out
    self._staged, self._constants = staged, constants
    self._micro_batches = micro_batches
    self._stages = jax.tree.leaves(staged)[0].shape[0]
    self._count = jax.tree.leaves(micro_batches)[0].shape[0]
    # In an array of its own: inside a mesh that is manual in one axis alone,
    # not every compiler knows the index along it.
    self._rank_S = jnp.arange(self._stages)

  def start(self) -> _Carry:
    """Zeros of everything."""

    def shapes():
      micro_batch = _micro_batch(self._micro_batches, 0)
      own = jax.tree.map(lambda x: x[0], (self._staged, self._constants))
      x = self._model.enter(self._outer, micro_batch)
      _, _, passed = self._model.stage(*own, x, micro_batch)
      _, left = self._model.leave(self._outer, x, micro_batch)
      return x, passed, left

    x, passed, left = jax.eval_shape(shapes)
    stages = self._stages

    def zeros(tree, *leading):
      return jax.tree.map(
        lambda v: jnp.zeros((*leading, *v.shape), v.dtype), tree
      )

    def float32(tree):
      return jax.tree.map(lambda v: jnp.zeros(v.shape, jnp.float32), tree)

    outer, gradients = self._lay_out(
      float32(self._outer), float32(self._staged)
    )
    return _Carry(
      y=zeros(x, stages),
      dx=zeros(x, stages),
      kept=zeros(x, stages, stages),
      outer=outer,
      staged=gradients,
      left=zeros(left),
      passed=zeros(passed, stages),
    )

  def forward(self, carry: _Carry, t: jax.Array) -> _Carry:
    """Every stage forward."""
    return self._all_forward(carry, t)[0]

  def both(self, carry: _Carry, t: jax.Array) -> _Carry:
    """Every stage forward, the loss of what comes out, every stage backward."""
    carry, last = self._all_forward(carry, t)
    micro_batch = _micro_batch(self._micro_batches, t - (self._stages - 1))
    _, vjp, left = jax.vjp(
      lambda outer, x: self._model.leave(outer, x, micro_batch),
      self._outer,
      last,
      has_aux=True,
    )
    d_outer, d_last = vjp(jnp.ones((), jnp.float32))
    carry = dataclasses.replace(carry, left=_added(carry.left, left))
    return self._all_backward(carry, t, d_outer, d_last)

  def backward(self, carry: _Carry, t: jax.Array) -> _Carry:
    """Every stage backward."""
    # What lies with another stage still comes back.
    carry = self._put_away(carry, t, jnp.zeros_like(carry.y))
    d_outer = jax.tree.map(jnp.zeros_like, self._outer)
    d_last = jnp.zeros(carry.y.shape[1:], carry.y.dtype)
    return self._all_backward(carry, t, d_outer, d_last)

  def _all_forward(self, carry, t):
    """(carry, the last stage's output)."""

    def own(staged, constants, rank, before, entered, micro_batches, t):
      x = jnp.where(rank == 0, entered, self._shifted(before, 1))
      index = t - rank
      micro_batch = _micro_batch(micro_batches, index)
      y, _, passed = self._model.stage(staged, constants, x, micro_batch)
      there = (index >= 0) & (index < self._count)
      passed = jax.tree.map(lambda v: jnp.where(there, v, 0), passed)
      return x, y, passed

    entered = self._model.enter(
      self._outer, _micro_batch(self._micro_batches, t)
    )
    x, y, passed = self._on_stages(
      own, (carry.y,), (entered, self._micro_batches, t)
    )
    carry = self._put_away(carry, t, x)
    passed = _added(carry.passed, passed)
    carry = dataclasses.replace(carry, y=y, passed=passed)
    return carry, _of_stage(self._stages - 1, y)

  def _put_away(self, carry, t, x):
    """The carry that keeps this tick's inputs x [S, ...] of the stages too.

    Slot (t + 1) % `_own_slots` of a stage then holds the input of its backward
    pass of this tick: the one that it put there longest ago.
    """
    stages = self._stages
    pairs = [(s, stages - 1 - s) for s in range(stages) if 2 * s != stages - 1]

    def own(staged, constants, rank, kept, x, t):
      del staged, constants
      leaves, slots = 2 * rank < stages - 1, self._own_slots(rank)
      # An input lies with another stage for as many ticks as that has slots.
      slot = slots + t % jnp.maximum(stages - slots, 1)
      out = jnp.where(leaves, x, _at(kept, slot))
      got = jax.lax.ppermute(out, AXIS, pairs)
      kept = _set(kept, t % slots, jnp.where(leaves, got, x))
      return _set(kept, slot, jnp.where(slots < stages, got, _at(kept, slot)))

    kept = self._on_stages(own, (carry.kept, x), (t,))
    return dataclasses.replace(carry, kept=kept)

  def _own_slots(self, rank):
    """Slots of a rank for its own inputs; the rest are for another stage's."""
    return jnp.minimum(self._stages, 2 * (self._stages - 1 - rank) + 1)

  def _all_backward(self, carry, t, d_outer, d_last):
    """The carry with the gradients of a micro-batch per stage.

    Args:
      carry: after the forward passes of the tick.
      t: the tick.
      d_outer: gradients of `leave`.
      d_last: gradient of the last stage's output.
    """
    stages, model = self._stages, self._model
    # Ticks until a micro-batch comes back to the first stage.
    trip = 2 * stages - 2

    def own(staged, constants, rank, after, kept, d_last, micro_batches, t):
      dy = jnp.where(rank == stages - 1, d_last, self._shifted(after, -1))
      index = t - (trip - rank)
      micro_batch = _micro_batch(micro_batches, index)
      x = _at(kept, (t + 1) % self._own_slots(rank))
      _, vjp = jax.vjp(
        lambda staged, x: model.stage(staged, constants, x, micro_batch)[:2],
        staged,
        x,
      )
      there = (index >= 0) & (index < self._count)
      return jax.tree.map(
        lambda v: jnp.where(there, v, 0), vjp((dy, jnp.ones((), jnp.float32)))
      )

    d_staged, dx = self._on_stages(
      own, (carry.dx, carry.kept), (d_last, self._micro_batches, t)
    )
    micro_batch = _micro_batch(self._micro_batches, t - trip)
    _, vjp = jax.vjp(lambda outer: model.enter(outer, micro_batch), self._outer)
    d_outer = _added(_float32(d_outer), vjp(_of_stage(0, dx))[0])
    d_outer, d_staged = self._lay_out(d_outer, _float32(d_staged))
    return dataclasses.replace(
      carry,
      dx=dx,
      outer=_added(carry.outer, d_outer),
      staged=_added(carry.staged, d_staged),
    )

  def _on_stages(self, function, own, shared):
    """Calls it on every rank; the rest of the mesh is the compiler's.

    Args:
      function: of (a stage's parameters, its constants, its rank, *its parts of
        own, *shared) to a tree of arrays of its own.
      own: arrays [S, ...].
      shared: arrays, whole on every rank.

    Returns:
      A tree of arrays [S, ...].
    """
    mine = (self._staged, self._constants, self._rank_S, *own)

    def local(mine, shared):
      result = function(*jax.tree.map(lambda x: x[0], mine), *shared)
      return jax.tree.map(lambda x: x[None], result)

    split, whole = PartitionSpec(AXIS), PartitionSpec()
    return jax.shard_map(
      local,
      in_specs=(split, whole),
      out_specs=split,
      axis_names={AXIS},
      check_vma=False,
    )(mine, shared)

  def _shifted(self, x, by: int):
    """x of the stage before (1) or after (-1); 0 where there is none."""
    ranks = range(self._stages)
    pairs = [(rank, rank + by) for rank in ranks if rank + by in ranks]
    return jax.lax.ppermute(x, AXIS, pairs)


def _of_stage(stage: int, x_S: jax.Array) -> jax.Array:
  """One stage's part, on every rank: a sum of it and of zeros, in its dtype."""
  own_S = jnp.arange(x_S.shape[0]) == stage
  own_S = own_S.reshape(-1, *([1] * (x_S.ndim - 1)))
  only = jnp.where(own_S, x_S, jnp.zeros((), x_S.dtype))
  return jax.lax.reduce_sum(only, (0,))


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
