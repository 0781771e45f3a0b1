"""Balance without an auxiliary loss: the bias rule, and measures of load.

Letters: N layers, E experts.
"""

import jax
import jax.numpy as jnp
import numpy as np


def update_bias(
  bias_NE: jax.Array,
  load_NE: jax.Array,
  rate: jax.typing.ArrayLike,
) -> jax.Array:
  """Raises the bias of underloaded experts and lowers that of the others.

  b += rate * sign(mean load - load), once per optimizer step, from the load of
  the whole batch just trained on, outside the gradient. As in the released
  weights, biases aren't centred.

  Args:
    bias_NE: float32 selection biases.
    load_NE: number of choices of each expert in the global batch.
    rate: gamma.

  Returns:
    The new biases.

  References:
    DeepSeek-V3, section 2.1.2; arXiv 2408.15664, algorithm 1.
  """
  load_NE = load_NE.astype(jnp.float32)
  mean_N1 = load_NE.mean(axis=-1, keepdims=True)
  move_NE = jnp.sign(mean_N1 - load_NE)
  return bias_NE + rate * move_NE


def max_violation(load_NE: jax.Array) -> jax.Array:
  """(max - mean) / mean of each layer's load (arXiv 2408.15664)."""
  load_NE = load_NE.astype(jnp.float32)
  mean_N = load_NE.mean(axis=-1)
  return (load_NE.max(axis=-1) - mean_N) / mean_N


def entropy(load_NE: np.ndarray) -> np.ndarray:
  """Each layer's entropy of load over that of balanced load: float64 [N]."""
  share_NE = load_NE / load_NE.sum(axis=-1, keepdims=True, dtype=np.float64)
  logs_NE = np.log(share_NE, where=share_NE > 0, out=np.zeros_like(share_NE))
  return -(share_NE * logs_NE).sum(axis=-1) / np.log(load_NE.shape[-1])


def unused_share(load_NE: np.ndarray) -> np.ndarray:
  """Share of each layer's experts that no token chose: float64 [N]."""
  return (load_NE == 0).mean(axis=-1)
