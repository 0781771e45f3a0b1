"""Cross-entropy from hidden states, without ever holding all logits.

Letters: T tokens, D model width, V vocabulary.
"""

import jax
import jax.numpy as jnp

# Tokens whose logits are held at once: as many as make this many logits, so
# that V3's vocabulary takes 128 MB, and no more than this.
CHUNK_LOGITS = 1 << 25
LARGEST_CHUNK = 1024


def log_probabilities(
  hidden_TD: jax.Array, head_DV: jax.Array, targets_T: jax.Array
) -> jax.Array:
  """Log-probability of each target, in nats, by chunks of tokens.

  Args:
    hidden_TD: hidden states after the final norm.
    head_DV: output head.
    targets_T: target ids.

  Returns:
    float32 [T].
  """

  def chunk(pair):
    hidden, targets = pair
    logits = _logits(hidden, head_DV)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=1)

  chunks = _chunked((hidden_TD, targets_T), head_DV.shape[1])
  return jax.lax.map(chunk, chunks).reshape(-1)[: targets_T.shape[0]]


@jax.custom_vjp
def cross_entropy_sum(
  hidden_TD: jax.Array,
  head_DV: jax.Array,
  targets_T: jax.Array,
  weights_T: jax.Array,
) -> jax.Array:
  """Weighted sum of the targets' cross-entropies, in nats.

  The gradient is taken chunk by chunk together with the value, while the
  chunk's logits are alive: three products in all, and no [T, V] array.

  Args:
    hidden_TD: hidden states after the final norm.
    head_DV: output head.
    targets_T: target ids.
    weights_T: weight of each target; no gradient flows to it.

  Returns:
    float32 scalar.
  """
  return -jnp.sum(log_probabilities(hidden_TD, head_DV, targets_T) * weights_T)


def _forward(hidden_TD, head_DV, targets_T, weights_T):
  def chunk(carry, inputs):
    loss, d_head = carry
    hidden, targets, weights = inputs
    logits = _logits(hidden, head_DV)
    log_z = jax.nn.logsumexp(logits, axis=1)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    loss += jnp.sum((log_z - chosen) * weights)
    hit = targets[:, None] == jnp.arange(logits.shape[1])[None, :]
    d_logits = (jnp.exp(logits - log_z[:, None]) - hit) * weights[:, None]
    d_logits = d_logits.astype(hidden.dtype)
    d_hidden = jnp.einsum('TV,DV->TD', d_logits, head_DV)
    d_head += jnp.einsum(
      'TD,TV->DV', hidden, d_logits, preferred_element_type=jnp.float32
    )
    return (loss, d_head), d_hidden

  start = (jnp.zeros((), jnp.float32), jnp.zeros(head_DV.shape, jnp.float32))
  chunks = _chunked((hidden_TD, targets_T, weights_T), head_DV.shape[1])
  (loss, d_head), d_hidden = jax.lax.scan(chunk, start, chunks)
  d_hidden = d_hidden.reshape(-1, hidden_TD.shape[1])[: hidden_TD.shape[0]]
  return loss, (d_hidden, d_head.astype(head_DV.dtype))


def _backward(residuals, cotangent):
  d_hidden, d_head = residuals
  d_hidden = (d_hidden * cotangent).astype(d_hidden.dtype)
  d_head = (d_head * cotangent).astype(d_head.dtype)
  return d_hidden, d_head, None, None


cross_entropy_sum.defvjp(_forward, _backward)


def _logits(hidden_TD: jax.Array, head_DV: jax.Array) -> jax.Array:
  return jnp.einsum(
    'TD,DV->TV', hidden_TD, head_DV, preferred_element_type=jnp.float32
  )


def _chunked(arrays, vocab_size: int):
  """Pads the tokens to whole chunks; padding has weight and id 0."""
  tokens = arrays[0].shape[0]
  chunk = min(LARGEST_CHUNK, max(CHUNK_LOGITS // vocab_size, 1), tokens)
  count = -(-tokens // chunk)

  def split(x):
    padding = [(0, count * chunk - tokens)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(count, chunk, *x.shape[1:])

  return jax.tree.map(split, arrays)
