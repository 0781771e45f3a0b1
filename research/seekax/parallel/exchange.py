"""Sends tokens to their experts' devices and back, on any mesh, dropping none.

Everything here runs inside `rules.per_shard`: arrays are one device's own part.

A level is one mesh axis over whose ranks experts are spread. `all_to_all` moves
tokens over it in rounds of fixed size: every rank has room for as many rows for
each other rank as balanced loads need, with some slack, and rounds go on until
no rank has rows left, which takes one round when loads are near balance.
Buffers for the worst case would always take one round, but 15 GB per layer at
DeepSeek-V3's size, where balanced ones take 0.47 GB. The gradient repeats the
rounds, so that only the tokens themselves are kept.

With `expert_node` above 1 there are two levels: a token is sent to a node once,
however many of its experts are there (DeepSeek-V3, section 3.2.2: at most as
many copies as the router keeps groups), and within the node every choice is a
row of its own.

`gather` collects the tokens of all ranks and scatters the sums of their
outputs: more bytes, but plain collectives that run as rings over fast links.
`ragged`, for GPUs, takes the rounds of `all_to_all` but sends only the rows
that exist, not the free room.

Letters: T tokens, A choices per token, D width, R ranks of a level's axis, I
items (an item is a token sent to one rank), K choices of an item, C rows of
room for one rank in a round, P rows that arrive in a round.
"""

from collections.abc import Callable
import functools

from flax import struct
import jax
import jax.numpy as jnp

from seekax.arrays import PyTree
from seekax.configuration.compute import ComputeConfig
from seekax.configuration.model import ModelConfig
from seekax.ops import block_fp8
from seekax.ops.blocks import sort_slots
from seekax.parallel.exchange_levels import DISPATCH, Level, levels
from seekax.parallel.mesh import current_sizes, stages_differ

# Maps (tokens [T, D], gates [T, A], experts [T, A], weights) to (float32
# [T, D], rounds). An id past this device's experts means none and gives 0.
Experts = Callable[..., tuple[jax.Array, jax.Array]]


def over_experts(
  experts: Callable[..., jax.Array],
  model: ModelConfig,
  compute: ComputeConfig,
  x_TD: jax.Array,
  gates_TA: jax.Array,
  experts_TA: jax.Array,
  weights: PyTree,
) -> tuple[jax.Array, jax.Array]:
  """Sums over each token's experts, on whichever devices they are.

  Args:
    experts: computes this device's experts: maps (tokens, gates, ids, weights)
      to float32 [T, D].
    model: gives the router's limits.
    compute: says how the exchange is done.
    x_TD: this device's tokens.
    gates_TA: float32 weight of each choice.
    experts_TA: chosen experts, numbered over the whole mesh.
    weights: weights of this device's experts, on a leading axis.

  Returns:
    (float32 [T, D], int32 rounds that the slowest exchange took).
  """

  def run(*arguments):
    return experts(*arguments), jnp.int32(1)

  found = levels(model, compute, current_sizes(), x_TD.shape[0])
  for level in reversed(found):
    way = _gathered if compute.exchange == 'gather' else _exchanged
    run = functools.partial(way, run, level)
  return run(x_TD, gates_TA, experts_TA, weights)


def _own(level: Level, weights: PyTree) -> int:
  """Number of experts on one rank of a level."""
  return jax.tree.leaves(weights)[0].shape[0] * level.inner


def _relative(experts, first, own: int):
  """Ids counted from a rank's first expert; `own` for experts elsewhere."""
  ids = experts - first
  return jnp.where((ids >= 0) & (ids < own), ids, own)


def _gathered(
  experts: Experts, level: Level, x_TD, gates_TA, experts_TA, weights
):
  """Each rank computes its experts' share of the tokens of all ranks."""
  axis, own = level.axis, _own(level, weights)
  gather = functools.partial(jax.lax.all_gather, axis_name=axis, tiled=True)
  first = jax.lax.axis_index(axis) * own
  ids_TA = _relative(gather(experts_TA), first, own)
  y_TD, rounds = experts(gather(x_TD), gather(gates_TA), ids_TA, weights)
  return jax.lax.psum_scatter(y_TD, axis, tiled=True), rounds


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _exchanged(
  experts: Experts, level: Level, x_TD, gates_TA, experts_TA, weights
):
  """Sends tokens to the ranks of their experts and outputs back, in rounds."""
  trip = _Trip(level, experts_TA, weights)

  def go(number):
    arrived = trip.send(number, x_TD, gates_TA)
    y_PD, inner = experts(*arrived, weights)
    return trip.to_tokens(number, y_PD.astype(x_TD.dtype)), inner

  y_TD, inner = trip.over_rounds(go)
  return y_TD, jnp.maximum(trip.rounds, inner)


def _exchanged_forward(experts, level, x_TD, gates_TA, experts_TA, weights):
  out = _exchanged(experts, level, x_TD, gates_TA, experts_TA, weights)
  return out, (x_TD, gates_TA, experts_TA, weights)


def _exchanged_backward(experts, level, saved, cotangents):
  """The same rounds, with the outputs' gradients sent beside the tokens."""
  x_TD, gates_TA, experts_TA, weights = saved
  dy_TD = cotangents[0].astype(x_TD.dtype)
  # Otherwise the compiler would keep what arrived in the forward pass.
  x_TD, gates_TA, experts_TA, dy_TD = jax.lax.optimization_barrier(
    (x_TD, gates_TA, experts_TA, dy_TD)
  )
  trip = _Trip(level, experts_TA, weights)

  def go(number):
    x_PD, gates_PK, experts_PK = trip.send(number, x_TD, gates_TA)
    dy_PD = trip.send_rows(number, dy_TD)

    def arrived(x_PD, gates_PK, weights):
      return experts(x_PD, gates_PK, experts_PK, weights)[0]

    _, vjp = jax.vjp(arrived, x_PD, gates_PK, weights)
    dx_PD, dgates_PK, dweights = vjp(dy_PD.astype(jnp.float32))
    return (
      trip.to_tokens(number, dx_PD),
      trip.to_choices(number, dgates_PK),
      jax.tree.map(lambda d: d.astype(jnp.float32), dweights),
    )

  dx_TD, dgates_TA, dweights = trip.over_rounds(go)
  dweights = jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, weights)
  return dx_TD.astype(x_TD.dtype), dgates_TA, None, dweights


_exchanged.defvjp(_exchanged_forward, _exchanged_backward)


@struct.dataclass
class Items:
  """The I items that are to be sent, each a token to one rank.

  Attributes:
    experts_IK: the item's choices as ids on its rank; out of range where a
      choice is on no expert there.
    rank_I: destination rank; R for none.
    place_I: position among the items for that rank.
    order_I: items sorted by rank.
    starts_R: index of each rank's first item in order_I.
    sizes_R: number of items for each rank.
  """

  experts_IK: jax.Array
  rank_I: jax.Array
  place_I: jax.Array
  order_I: jax.Array
  starts_R: jax.Array
  sizes_R: jax.Array


def find_items(level: Level, experts_TA, own: int) -> Items:
  """Makes items: each token per rank of its choices, or each choice alone.

  Args:
    level: the level that they are sent over.
    experts_TA: chosen experts; ids past the last rank's mean none.
    own: number of experts on one rank.

  Returns:
    The items. A token's items are adjacent: item i is of token i // (I / T).
  """
  ranks = level.ranks
  rank_TA = jnp.minimum(experts_TA // own, ranks)
  if level.once:
    all_R = jnp.arange(ranks)
    there_TR = (rank_TA[:, :, None] == all_R).any(axis=1)
    rank_I = jnp.where(there_TR, all_R, ranks).reshape(-1)
    ids_TRA = _relative(experts_TA[:, None], all_R[:, None] * own, own)
    experts_IK = ids_TRA.reshape(-1, experts_TA.shape[1])
  else:
    rank_I = rank_TA.reshape(-1)
    experts_IK = (experts_TA % own).reshape(-1, 1)
  slots = sort_slots(rank_I[:, None], ranks)
  return Items(
    experts_IK=experts_IK,
    rank_I=rank_I,
    place_I=slots.rank_TA[:, 0],
    order_I=slots.order_S,
    starts_R=slots.starts_E,
    sizes_R=slots.sizes_E,
  )


class _Trip:
  """The rounds of one exchange. P = R * C rows arrive in a round.

  Attributes:
    rounds: number of rounds, int32, equal on every device of the mesh or of a
      pipeline stage, so that all of them meet in the same collectives.
  """

  def __init__(self, level: Level, experts_TA, weights):
    self._level = level
    self._own = _own(level, weights)
    self._tokens, self._choices = experts_TA.shape
    self._items = find_items(level, experts_TA, self._own)
    self._per_token = self._items.rank_I.shape[0] // self._tokens
    meeting = set(current_sizes())
    if stages_differ():
      meeting.discard('pipeline')
    most = jax.lax.pmax(self._items.sizes_R.max(), tuple(sorted(meeting)))
    self.rounds = jnp.maximum(-(-most // level.rows), 1)

  def over_rounds(self, go: Callable[[jax.Array], PyTree]) -> PyTree:
    """Adds up what `go` returns for each round.

    The first round always happens, so it stands outside of the loop, where the
    compiler can compute something else while rows are being sent.
    """

    def step(carry):
      number, so_far = carry
      return number + 1, jax.tree.map(jnp.add, so_far, go(number))

    start = jnp.int32(1), go(jnp.int32(0))
    return jax.lax.while_loop(lambda c: c[0] < self.rounds, step, start)[1]

  def send(self, number, x_TD, gates_TA):
    """Returns the tokens that arrive in a round, their gates and local ids."""
    item_RC = self._in_round(number)
    if self._level.once:
      gates_IK = jnp.repeat(gates_TA, self._per_token, axis=0)
    else:
      gates_IK = gates_TA.reshape(-1, 1)
    gates_RCK = _rows(gates_IK, item_RC, 0)
    experts_RCK = _rows(self._items.experts_IK, item_RC, self._own)
    x_PD = self.send_rows(number, x_TD, self._level.float8)
    # Every row needs its ids, because they mark the rows that are empty.
    return x_PD, self._swap(gates_RCK), self._swap(experts_RCK)

  def send_rows(self, number, x_TD, float8: bool = False) -> jax.Array:
    """Sends a round's rows of tokens; returns those that arrive, [P, D]."""
    token_RC = self._in_round(number) // self._per_token
    x_RCD = _rows(x_TD, token_RC, 0)
    swap = functools.partial(self._swap_rows, number)
    if not float8:
      return swap(x_RCD)
    tiles = jax.tree.map(swap, block_fp8.quantize(x_RCD, DISPATCH))
    return block_fp8.dequantize(tiles, DISPATCH).astype(x_TD.dtype)

  def to_tokens(self, number, y_PD) -> jax.Array:
    """float32 [T, D], the sum of each token's rows in a round."""
    y_RCD = y_PD.reshape(self._level.ranks, self._level.rows, -1)
    y_PD = self._swap_rows(number, y_RCD, back=True)
    return self._of_items(number, y_PD).sum(axis=1, dtype=jnp.float32)

  def to_choices(self, number, dgates_PK) -> jax.Array:
    """[T, A], what returns for each choice; each returns from one rank."""
    d_RCK = dgates_PK.reshape(self._level.ranks, self._level.rows, -1)
    d_TXK = self._of_items(number, self._swap(d_RCK))
    return d_TXK.sum(axis=1) if self._level.once else d_TXK[..., 0]

  def _in_round(self, number) -> jax.Array:
    """[R, C], the item in each row of a round; I where there is none."""
    items, rows = self._items, self._level.rows
    place_RC = number * rows + jnp.arange(rows)[None, :]
    at_RC = items.starts_R[:, None] + place_RC
    item_RC = jnp.take(items.order_I, at_RC, mode='clip')
    none = items.rank_I.shape[0]
    return jnp.where(place_RC < items.sizes_R[:, None], item_RC, none)

  def _swap(self, x_RCK) -> jax.Array:
    """Exchanges rows for each rank for rows from each rank: [P, ...]."""
    x = jax.lax.all_to_all(x_RCK, self._level.axis, 0, 0, tiled=True)
    return x.reshape(-1, *x.shape[2:])

  def _swap_rows(self, number, x_RCD, back: bool = False) -> jax.Array:
    """The same; a ragged level doesn't send empty rows, which become 0."""
    level = self._level
    if not level.ragged:
      return self._swap(x_RCD)
    left_R = self._items.sizes_R - number * level.rows
    there_R = jnp.clip(left_R, 0, level.rows)
    sizes = there_R, self._swap(there_R[:, None])
    sent_R, arriving_R = sizes[::-1] if back else sizes
    x_PD = x_RCD.reshape(-1, *x_RCD.shape[2:])
    first_R = jnp.arange(level.ranks) * level.rows
    at = jax.lax.axis_index(level.axis) * level.rows
    return jax.lax.ragged_all_to_all(
      x_PD,
      jnp.zeros_like(x_PD),
      first_R.astype(jnp.int32),
      sent_R.astype(jnp.int32),
      jnp.full(level.ranks, at, jnp.int32),
      arriving_R.astype(jnp.int32),
      axis_name=level.axis,
    )

  def _of_items(self, number, y_PK) -> jax.Array:
    """The returned row of each item, [T, I / T, ...]; 0 in other rounds."""
    level, items = self._level, self._items
    within_I = items.place_I - number * level.rows
    here_I = (within_I >= 0) & (within_I < level.rows)
    here_I &= items.rank_I < level.ranks
    at_I = jnp.where(
      here_I, items.rank_I * level.rows + within_I, y_PK.shape[0]
    )
    return _rows(y_PK, at_I.reshape(self._tokens, self._per_token), 0)


def _rows(x, index, fill):
  """Rows of x; an index past the end gives `fill`."""
  return jnp.take(x, index, axis=0, mode='fill', fill_value=fill)
