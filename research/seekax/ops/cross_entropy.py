"""Cross-entropy from hidden states, without ever holding all logits.

Letters: T tokens, D model width, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# The number of tokens whose logits are held at once gives this many logits,
# 128 MB for V3's vocabulary, but is at most LARGEST_CHUNK.
CHUNK_LOGITS = 1 << 25
LARGEST_CHUNK = 1024


def log_probabilities(
  hidden_TD: jax.Array, head_DV: jax.Array, targets_T: jax.Array
) -> jax.Array:
  """Log-probability of each target, in nats, in chunks of tokens.

  Args:
    hidden_TD: hidden states after the final norm.
    head_DV: output head.
    targets_T: target ids.

  Returns:
    float32 [T].
  """
  return _target_scores(hidden_TD, head_DV, targets_T)[0]


def cross_entropy_sum(
  hidden_TD: jax.Array,
  head_DV: jax.Array,
  targets_T: jax.Array,
  weights_T: jax.Array,
) -> jax.Array:
  """Weighted sum of the targets' cross-entropies, in nats.

  The gradient is computed chunk by chunk together with the value, while the
  chunk's logits are in memory: three products in all, and no [T, V] array.

  Args:
    hidden_TD: hidden states after the final norm.
    head_DV: output head.
    targets_T: target ids.
    weights_T: weight of each target; no gradient flows to it. A hidden state
      must be finite even where the weight is 0, which multiplies it.

  Returns:
    float32 scalar.
  """
  return loss_sums(hidden_TD, head_DV, targets_T, weights_T, 0.0).objective


class Sums(NamedTuple):
  """Weighted sums over targets, float32 scalars.

  Attributes:
    objective: cross_entropy + z_weight * squared_log_z, with a gradient.
    cross_entropy: in nats; no gradient flows through it.
    squared_log_z: the softmax's log-normaliser, squared; no gradient flows
      through it. 0 where the weight is 0.
  """

  objective: jax.Array
  cross_entropy: jax.Array
  squared_log_z: jax.Array


def loss_sums(
  hidden_TD: jax.Array,
  head_DV: jax.Array,
  targets_T: jax.Array,
  weights_T: jax.Array,
  z_weight: float,
  vocab_axes: tuple[str, ...] = (),
) -> Sums:
  """`cross_entropy_sum` with the z-loss, in one pass.

  The z-loss pulls log Z, which softmax leaves free, towards 0, so that the
  logits stay small (PaLM, arXiv 2204.02311, section 5, with a weight of 1e-4).

  Args:
    hidden_TD: hidden states after the final norm.
    head_DV: output head.
    targets_T: target ids.
    weights_T: weight of each target in both losses; no gradient flows to it.
    z_weight: weight of the z-loss, 0.0 for none.
    vocab_axes: mapped axes (as in shard_map) that the vocabulary is split over;
      head_DV is then this device's part, and the rest is equal on all of them.

  Returns:
    The objective and its two parts.
  """
  sums = _sums(z_weight, vocab_axes, hidden_TD, head_DV, targets_T, weights_T)
  return Sums(sums[0], *map(jax.lax.stop_gradient, sums[1:]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(z_weight, vocab_axes, hidden_TD, head_DV, targets_T, weights_T):
  chosen_T, log_z_T = _target_scores(hidden_TD, head_DV, targets_T, vocab_axes)
  return _weighted(z_weight, -chosen_T, log_z_T, weights_T)


def _weighted(z_weight, cross_entropy_T, log_z_T, weights_T):
  """Returns the sums (objective, cross-entropy, squared log Z)."""
  loss = jnp.sum(cross_entropy_T * weights_T)
  if not z_weight:
    return loss, loss, jnp.zeros((), jnp.float32)
  z = jnp.sum(jnp.square(log_z_T) * weights_T)
  return loss + z_weight * z, loss, z


def _forward(z_weight, vocab_axes, hidden_TD, head_DV, targets_T, weights_T):
  first = _first_id(head_DV, vocab_axes)

  def chunk(carry, inputs):
    so_far, d_head = carry
    hidden, targets, weights = inputs
    logits = _logits(hidden, head_DV)
    log_z = _log_z(logits, vocab_axes)
    chosen = _chosen(logits, targets - first, vocab_axes)
    sums = _weighted(z_weight, log_z - chosen, log_z, weights)
    hit = (targets - first)[:, None] == jnp.arange(logits.shape[1])[None, :]
    softmax = jnp.exp(logits - log_z[:, None])
    if z_weight:
      # The gradient of log Z is the softmax.
      softmax *= (1 + 2 * z_weight * log_z)[:, None]
    d_logits = ((softmax - hit) * weights[:, None]).astype(hidden.dtype)
    d_hidden = jnp.einsum('TV,DV->TD', d_logits, head_DV)
    d_head += jnp.einsum(
      'TD,TV->DV', hidden, d_logits, preferred_element_type=jnp.float32
    )
    return (jax.tree.map(jnp.add, so_far, sums), d_head), d_hidden

  zero = jnp.zeros((), jnp.float32)
  start = ((zero,) * 3, jnp.zeros(head_DV.shape, jnp.float32))
  chunks = _chunked((hidden_TD, targets_T, weights_T), head_DV.shape[1])
  (sums, d_head), d_hidden = jax.lax.scan(chunk, start, chunks)
  d_hidden = d_hidden.reshape(-1, hidden_TD.shape[1])[: hidden_TD.shape[0]]
  return sums, (d_hidden, d_head.astype(head_DV.dtype))


def _backward(z_weight, vocab_axes, residuals, cotangents):
  del z_weight  # The saved gradient includes it.
  d_hidden, d_head = residuals
  cotangent = cotangents[0]  # The other two are only reported.
  if vocab_axes:
    # The transpose of a psum. The shard_map adds up each device's part of
    # d_hidden, because the hidden states are replicated in it.
    cotangent = jax.lax.psum(cotangent, vocab_axes)
  d_hidden = (d_hidden * cotangent).astype(d_hidden.dtype)
  d_head = (d_head * cotangent).astype(d_head.dtype)
  return d_hidden, d_head, None, None


_sums.defvjp(_forward, _backward)


def _target_scores(
  hidden_TD: jax.Array,
  head_DV: jax.Array,
  targets_T: jax.Array,
  vocab_axes: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array]:
  """Returns (log-probability of each target, log Z), float32 [T] each."""
  first = _first_id(head_DV, vocab_axes)

  def chunk(pair):
    hidden, targets = pair
    logits = _logits(hidden, head_DV)
    chosen = _chosen(logits, targets - first, vocab_axes)
    log_z = _log_z(logits, vocab_axes)
    return chosen - log_z, log_z

  chunks = _chunked((hidden_TD, targets_T), head_DV.shape[1])
  scores = jax.lax.map(chunk, chunks)
  return jax.tree.map(lambda x: x.reshape(-1)[: targets_T.shape[0]], scores)


def _logits(hidden_TD: jax.Array, head_DV: jax.Array) -> jax.Array:
  return jnp.einsum(
    'TD,DV->TV', hidden_TD, head_DV, preferred_element_type=jnp.float32
  )


def _first_id(head_DV, vocab_axes):
  """The id of this device's first column."""
  if not vocab_axes:
    return 0
  return jax.lax.axis_index(vocab_axes) * head_DV.shape[1]


def _chosen(logits_TV, columns_T, vocab_axes):
  """[T], the logit in a given column, which may be on another device."""
  if not vocab_axes:
    return jnp.take_along_axis(logits_TV, columns_T[:, None], axis=1)[:, 0]
  count = logits_TV.shape[1]
  # JAX would count a negative column from the end.
  columns_T = jnp.where(columns_T < 0, count, columns_T)
  own_T = jnp.take_along_axis(
    logits_TV, columns_T[:, None], axis=1, mode='fill', fill_value=0
  )[:, 0]
  return jax.lax.psum(own_T, vocab_axes)


def _log_z(logits_TV, vocab_axes):
  """[T], the log of the sum of the exponentials of all columns."""
  own_T = jax.nn.logsumexp(logits_TV, axis=1)
  if not vocab_axes:
    return own_T
  largest_T = jax.lax.pmax(own_T, vocab_axes)
  total_T = jax.lax.psum(jnp.exp(own_T - largest_T), vocab_axes)
  return largest_T + jnp.log(total_T)


def _chunked(arrays, vocab_size: int):
  """Pads the tokens to whole chunks; padding has weight and id 0."""
  tokens = arrays[0].shape[0]
  chunk = min(LARGEST_CHUNK, max(CHUNK_LOGITS // vocab_size, 1), tokens)
  count = -(-tokens // chunk)

  def split(x):
    padding = [(0, count * chunk - tokens)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(count, chunk, *x.shape[1:])

  return jax.tree.map(split, arrays)
