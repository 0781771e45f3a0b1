"""From logits to a token: temperature and nucleus sampling.

Letters: B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp

# Returned for logits that contain NaN or infinity.
NO_TOKEN = -1


def sample(
  key: jax.Array, logits_BV: jax.Array, temperature: jax.Array, top_p: jax.Array
) -> jax.Array:
  """Draws one token per row.

  Args:
    key: random key.
    logits_BV: float32 logits.
    temperature: 0 takes the likeliest token.
    top_p: the smallest set of likeliest tokens whose probability reaches this
      is drawn from; 1 keeps all (Holtzman et al., arXiv 1904.09751).

  Returns:
    int32 [B]; NO_TOKEN where a logit is NaN or infinity.
  """
  greedy_B = jnp.argmax(logits_BV, axis=-1)
  scaled_BV = logits_BV / jnp.maximum(temperature, 1e-6)
  order_BV = jnp.argsort(-scaled_BV, axis=-1)
  sorted_BV = jnp.take_along_axis(scaled_BV, order_BV, axis=-1)
  probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
  before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
  # A float32 cumsum reaches 1 before the tail of a large vocabulary.
  kept = (before_BV < top_p) | (top_p >= 1)
  kept_BV = jnp.where(kept, sorted_BV, -jnp.inf)
  choice_B = jax.random.categorical(key, kept_BV, axis=-1)
  drawn_B = jnp.take_along_axis(order_BV, choice_B[:, None], axis=-1)[:, 0]
  token_B = jnp.where(temperature > 0, drawn_B, greedy_B)
  # The largest of logits with a NaN among them is one.
  sound_B = jnp.isfinite(logits_BV.max(axis=-1))
  return jnp.where(sound_B, token_B, NO_TOKEN).astype(jnp.int32)
