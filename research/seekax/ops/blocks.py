"""Applies a function of rows and experts in blocks of rows of one expert.

The core of the `blocked` backend, which `ops/grouped_matmul.py` describes.

Letters: T tokens, A experts per token, S slots (S = T*A), E experts, G blocks
computed together, C rows of one block, D input width, F output width.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from seekax.arrays import PyTree

# Rows of one expert in its first block, as a multiple of the balanced load, and
# the multiple they are rounded up to. On a CPU, 1 to 1.25 measured alike.
BLOCK_SLACK = 1.1
BLOCK_MULTIPLE = 8
# Leftover blocks have half the rows, and are computed in groups of an eighth of
# the experts, because few experts are far above the mean. With loads of up to 2
# to 4 times the mean a training step took 5 % less than with blocks of an
# eighth, whose products have too few rows.
LEFTOVER_ROWS_SHARE = 2
LEFTOVER_GROUP_SHARE = 8
# In decoding, up to this many choices are computed one by one.
SEPARATE_SLOTS = 16


@struct.dataclass
class Slots:
  """Where each expert's rows are.

  Attributes:
    order_S: slots (token * A + choice), sorted by expert.
    rank_TA: rank of a slot among those of its expert.
    sizes_E: number of rows of each expert.
    starts_E: index of each expert's first row in order_S.
  """

  order_S: jax.Array
  rank_TA: jax.Array
  sizes_E: jax.Array
  starts_E: jax.Array


def sort_slots(experts_TA: jax.Array, num_experts: int) -> Slots:
  """Sorts slots by expert; a slot with expert id E belongs to no expert."""
  experts_S = experts_TA.reshape(-1)
  order_S = jnp.argsort(experts_S, stable=True).astype(jnp.int32)
  sizes_E = jnp.bincount(experts_S, length=num_experts).astype(jnp.int32)
  starts_E = jnp.cumsum(sizes_E) - sizes_E
  count = experts_S.shape[0]
  place_S = jnp.zeros(count, jnp.int32)
  place_S = place_S.at[order_S].set(
    jnp.arange(count, dtype=jnp.int32), unique_indices=True
  )
  rank_S = place_S - jnp.take(starts_E, experts_S, mode='clip')
  return Slots(order_S, rank_S.reshape(experts_TA.shape), sizes_E, starts_E)


def block_rows(num_slots: int, num_experts: int) -> int:
  """Number of rows of one expert in its first block (C)."""
  rows = num_slots * BLOCK_SLACK / num_experts
  return min(
    -(-int(rows + 1) // BLOCK_MULTIPLE) * BLOCK_MULTIPLE, max(num_slots, 1)
  )


class BlockFunction(NamedTuple):
  """A function of blocks of rows, and its gradient.

  Attributes:
    forward: maps ([G, C, D], [G, C], weights [G, ...]) to ([G, C, F],
      residuals).
    backward: maps the same inputs, the residuals and the gradient [G, C, F] to
      the gradients of the three inputs, those of the weights in float32.
  """

  forward: Callable[..., PyTree]
  backward: Callable[..., PyTree]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blocked(
  fn: BlockFunction,
  x_TD: jax.Array,
  scale_TA: jax.Array,
  experts_TA: jax.Array,
  weights: dict[str, jax.Array],
) -> jax.Array:
  """Sum over choices a of fn(x_t, scale_ta; the chosen expert's weights).

  Args:
    fn: works row by row; its residuals of the first blocks are kept for the
      backward pass, leftover blocks are computed again.
    x_TD: tokens.
    scale_TA: a factor for each choice, passed to fn.
    experts_TA: chosen experts; id E means none.
    weights: arrays with leading axis E.

  Returns:
    float32 [T, F]; the choices are added in float32.
  """
  return _run(fn, x_TD, scale_TA, experts_TA, weights)[0]


def _run(fn, x_TD, scale_TA, experts_TA, weights):
  """Returns (sum over choices, the plan, residuals of the first blocks)."""
  blocks = _plan(experts_TA, weights)

  def forward(group, own_weights):
    x_GCD, scale_GC, _ = _gather(blocks, group, x_TD, scale_TA)
    y_GCF, kept = fn.forward(x_GCD, scale_GC, own_weights)
    y_TAF = _to_tokens(group, y_GCF)
    return y_TAF.sum(axis=1, dtype=jnp.float32), kept

  def rest(group, total):
    own_weights = jax.tree.map(lambda w: w[group.experts_G], weights)
    return total + forward(group, own_weights)[0]

  first, kept = forward(_first_group(blocks), weights)
  return _over_leftovers(blocks, first, rest), blocks, kept


def _run_forward(fn, x_TD, scale_TA, experts_TA, weights):
  y_TF, blocks, kept = _run(fn, x_TD, scale_TA, experts_TA, weights)
  return y_TF, (x_TD, scale_TA, weights, blocks, kept)


def _run_backward(fn, saved, dy_TF):
  x_TD, scale_TA, weights, blocks, kept = saved
  dy_TF = dy_TF.astype(x_TD.dtype)

  def backward(group, own_weights, kept):
    x_GCD, scale_GC, slot_GC = _gather(
      blocks, group, x_TD, scale_TA, again=True
    )
    dy_GCF = _rows(dy_TF, slot_GC // scale_TA.shape[1])
    if kept is None:
      kept = fn.forward(x_GCD, scale_GC, own_weights)[1]
    dx_GCD, dscale_GC, dweights = fn.backward(
      x_GCD, scale_GC, own_weights, kept, dy_GCF
    )
    dx_TD = _to_tokens(group, dx_GCD).sum(axis=1)
    return dx_TD, _to_tokens(group, dscale_GC), dweights

  def rest(group, total):
    own_weights = jax.tree.map(lambda w: w[group.experts_G], weights)
    dx_TD, dscale_TA, dweights = backward(group, own_weights, None)
    return (
      total[0] + dx_TD,
      total[1] + dscale_TA,
      jax.tree.map(
        lambda sum_, part: sum_.at[group.experts_G].add(part, mode='drop'),
        total[2],
        dweights,
      ),
    )

  first = backward(_first_group(blocks), weights, kept)
  dx_TD, dscale_TA, dweights = _over_leftovers(blocks, first, rest)
  dweights = jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, weights)
  return dx_TD, dscale_TA, None, dweights


blocked.defvjp(_run_forward, _run_backward)


def each_slot(
  fn: BlockFunction,
  x_TD: jax.Array,
  scale_TA: jax.Array,
  experts_TA: jax.Array,
  weights: dict[str, PyTree],
) -> jax.Array:
  """The same as `blocked`, but each choice gets a copy of its weights.

  It is for decoding, with few slots: experts that no token chose aren't read.
  """
  num_experts = jax.tree.leaves(weights)[0].shape[0]
  experts_S = jnp.minimum(experts_TA.reshape(-1), num_experts - 1)
  scale_TA = jnp.where(experts_TA < num_experts, scale_TA, 0)
  scale_S1 = scale_TA.reshape(-1, 1)
  x_S1D = jnp.repeat(x_TD, experts_TA.shape[1], axis=0)[:, None]
  if experts_S.size <= SEPARATE_SLOTS:
    y_S1F = jnp.concatenate(
      [
        _one_slot(fn, x_S1D[i : i + 1], scale_S1[i : i + 1], expert, weights)
        for i, expert in enumerate(experts_S)
      ]
    )
  else:
    own_weights = jax.tree.map(
      lambda w: jnp.take(w, experts_S, axis=0, mode='clip'), weights
    )
    y_S1F, _ = fn.forward(x_S1D, scale_S1, own_weights)
  y_TAF = y_S1F.reshape(*experts_TA.shape, -1)
  return y_TAF.sum(axis=1, dtype=jnp.float32)


def _one_slot(fn, x_11D, scale_11, expert, weights):
  """[1, 1, F]; on a CPU slicing a matrix is twice as fast as gathering it."""
  own_weights = jax.tree.map(
    lambda w: jax.lax.dynamic_index_in_dim(w, expert), weights
  )
  return fn.forward(x_11D, scale_11, own_weights)[0]


@struct.dataclass
class _Blocks:
  """The blocks of every expert: its first one, and the leftover ones.

  Attributes:
    slots: where the rows are.
    experts_TA: chosen experts.
    left_end_E: number of leftover blocks of this and all earlier experts.
    left_E: number of leftover blocks of each expert.
    rows: number of rows in a first block (C).
    left_rows: number of rows in a leftover block.
  """

  slots: Slots
  experts_TA: jax.Array
  left_end_E: jax.Array
  left_E: jax.Array
  rows: int = struct.field(pytree_node=False)
  left_rows: int = struct.field(pytree_node=False)


@struct.dataclass
class _Group:
  """Blocks that are computed together, as one batched product.

  Attributes:
    experts_G: expert whose rows each block holds; E where there is no block.
    first_G: rank of each block's first row among its expert's rows.
    place_TA: row of each choice in these blocks, if it is in this group.
    inside_TA: whether the choice is in this group.
    rows: number of rows in each of these blocks.
  """

  experts_G: jax.Array
  first_G: jax.Array
  place_TA: jax.Array
  inside_TA: jax.Array
  rows: int = struct.field(pytree_node=False)


def _plan(experts_TA, weights) -> _Blocks:
  num_experts = next(iter(weights.values())).shape[0]
  rows = block_rows(experts_TA.size, num_experts)
  slots = sort_slots(experts_TA, num_experts)
  left_rows = max(rows // LEFTOVER_ROWS_SHARE, 1)
  left_E = -(-jnp.maximum(slots.sizes_E - rows, 0) // left_rows)
  return _Blocks(slots, experts_TA, jnp.cumsum(left_E), left_E, rows, left_rows)


def _first_group(blocks: _Blocks) -> _Group:
  """The first block of every expert."""
  num_experts = blocks.left_E.shape[0]
  experts_E = jnp.arange(num_experts, dtype=jnp.int32)
  nobody_TA = blocks.experts_TA >= num_experts
  return _Group(
    experts_G=experts_E,
    first_G=jnp.zeros_like(experts_E),
    place_TA=blocks.experts_TA * blocks.rows + blocks.slots.rank_TA,
    inside_TA=(blocks.slots.rank_TA < blocks.rows) & ~nobody_TA,
    rows=blocks.rows,
  )


def _over_leftovers(blocks: _Blocks, total, rest):
  """Applies rest(group, total so far) to all groups of leftover blocks."""
  group_size = max(blocks.left_E.shape[0] // LEFTOVER_GROUP_SHARE, 1)

  def step(carry):
    done, total = carry
    return done + group_size, rest(_leftovers(blocks, done, group_size), total)

  left = blocks.left_end_E[-1]
  start = (jnp.zeros_like(left), total)
  return jax.lax.while_loop(lambda c: c[0] < left, step, start)[1]


def _leftovers(blocks: _Blocks, done, group_size: int) -> _Group:
  index_G = done + jnp.arange(group_size, dtype=done.dtype)
  experts_G = jnp.searchsorted(blocks.left_end_E, index_G, side='right')
  start_E = blocks.left_end_E - blocks.left_E
  within_G = index_G - jnp.take(start_E, experts_G, mode='clip')
  beyond_TA = blocks.slots.rank_TA - blocks.rows
  place_TA = (
    jnp.take(start_E, blocks.experts_TA, mode='clip') - done
  ) * blocks.left_rows + beyond_TA
  nobody_TA = blocks.experts_TA >= blocks.left_E.shape[0]
  return _Group(
    experts_G=experts_G.astype(jnp.int32),
    first_G=blocks.rows + within_G * blocks.left_rows,
    place_TA=place_TA,
    inside_TA=(beyond_TA >= 0)
    & (place_TA >= 0)
    & (place_TA < group_size * blocks.left_rows)
    & ~nobody_TA,
    rows=blocks.left_rows,
  )


def _gather(blocks: _Blocks, group: _Group, x_TD, scale_TA, again=False):
  """Returns the group's tokens, scales and slots.

  Past an expert's last row the scale is 0, so that the token there adds nothing
  to results or gradients. Gathering `again` is written differently from the
  first time; otherwise the compiler would store the rows from the forward to
  the backward pass, A times as many as there are tokens. (On a CPU it does so
  even through an optimization_barrier.)
  """
  slots, count = blocks.slots, scale_TA.size
  size_G = jnp.take(slots.sizes_E, group.experts_G, mode='fill', fill_value=0)
  start_G = jnp.take(slots.starts_E, group.experts_G, mode='clip')
  rank_GC = group.first_G[:, None] + jnp.arange(group.rows)
  slot_GC = jnp.take(slots.order_S, start_G[:, None] + rank_GC, mode='clip')
  slot_GC = jnp.where(rank_GC < size_G[:, None], slot_GC, count)
  token_GC = slot_GC // scale_TA.shape[1]
  if again:
    token_GC = jnp.where(token_GC < x_TD.shape[0], token_GC, 0)
  x_GCD = jnp.take(x_TD, token_GC, axis=0, mode='clip')
  return x_GCD, _rows(scale_TA.reshape(-1), slot_GC), slot_GC


def _to_tokens(group: _Group, y_GC):
  """The group's result for each choice; 0 for choices in other groups."""
  y_R = y_GC.reshape(-1, *y_GC.shape[2:])
  place_TA = jnp.where(group.inside_TA, group.place_TA, y_R.shape[0])
  return _rows(y_R, place_TA)


def _rows(x, index):
  """Rows of x; an index past the end gives 0."""
  return jnp.take(x, index, axis=0, mode='fill', fill_value=0)
