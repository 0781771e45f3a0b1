"""From logits to tokens: temperature, and the tokens that may be drawn.

Every row of a batch has settings and a random key of its own, so that what is
drawn for a request doesn't depend on its neighbours.

Letters: B batch, V vocabulary.
"""

from typing import TypedDict

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from seekax.arrays import Array
from seekax.inference.limits import check_sampling

# Returned for logits that contain NaN or infinity.
NO_TOKEN = -1


@struct.dataclass
class Settings:
  """How the tokens of every row are drawn.

  Attributes:
    temperature_B: float32; 0 takes the likeliest token.
    top_k_B: int32; that many likeliest tokens may be drawn, 0: all.
    top_p_B: float32; the smallest set of likeliest tokens whose probability
      reaches this may be drawn, 1: all (Holtzman et al., arXiv 1904.09751).
    min_p_B: float32; tokens may be drawn whose probability is at least this
      share of the likeliest one's, 0: all (Minh et al., arXiv 2407.01082).
  """

  temperature_B: Array
  top_k_B: Array
  top_p_B: Array
  min_p_B: Array


class Options(TypedDict, total=False):
  """How one text is drawn, as keywords: see `Settings`."""

  temperature: float
  top_k: int
  top_p: float
  min_p: float


def settings(
  rows: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
) -> Settings:
  """The same settings for every row; see `Settings`.

  Raises:
    InputError: a value can't be.
  """
  check_sampling(temperature, top_k, top_p, min_p)
  return Settings(
    np.full(rows, temperature, np.float32),
    np.full(rows, min(top_k, 2**31 - 1), np.int32),
    np.full(rows, top_p, np.float32),
    np.full(rows, min_p, np.float32),
  )


def keys(seeds_B: jax.typing.ArrayLike) -> jax.Array:
  """A random key for every row, from uint32 seeds."""
  return jax.vmap(jax.random.key)(jnp.asarray(seeds_B, jnp.uint32))


def sample(
  keys_B: jax.Array, logits_BV: jax.Array, how: Settings
) -> tuple[jax.Array, jax.Array]:
  """Draws one token per row.

  The filters work in the order of the fields of `Settings`, each on the
  probabilities that the ones before it left.

  Args:
    keys_B: random keys.
    logits_BV: float32 logits.
    how: settings of the rows.

  Returns:
    (int32 [B], NO_TOKEN where a logit is NaN or infinity; the next keys).
  """
  pairs = jax.vmap(jax.random.split)(keys_B)
  greedy_B = jnp.argmax(logits_BV, axis=-1)
  scaled_BV = logits_BV / jnp.maximum(how.temperature_B, 1e-6)[:, None]
  order_BV = jnp.argsort(-scaled_BV, axis=-1)
  sorted_BV = jnp.take_along_axis(scaled_BV, order_BV, axis=-1)
  rank_V = jnp.arange(sorted_BV.shape[-1])
  k_B1 = how.top_k_B[:, None]
  sorted_BV = jnp.where((rank_V < k_B1) | (k_B1 == 0), sorted_BV, -jnp.inf)
  probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
  before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
  p_B1 = how.top_p_B[:, None]
  # A float32 cumsum reaches 1 before the tail of a large vocabulary.
  kept_BV = (before_BV < p_B1) | (p_B1 >= 1)
  least_B1 = how.min_p_B[:, None] * probability_BV[:, :1]
  kept_BV &= probability_BV >= least_B1
  choice_B = jax.vmap(jax.random.categorical)(
    pairs[:, 1], jnp.where(kept_BV, sorted_BV, -jnp.inf)
  )
  drawn_B = jnp.take_along_axis(order_BV, choice_B[:, None], axis=-1)[:, 0]
  token_B = jnp.where(how.temperature_B > 0, drawn_B, greedy_B)
  # If one logit is NaN, the largest is NaN too.
  sound_B = jnp.isfinite(logits_BV.max(axis=-1))
  token_B = jnp.where(sound_B, token_B, NO_TOKEN).astype(jnp.int32)
  return token_B, pairs[:, 0]
