"""Rotary position embedding and its context extensions.

Letters: B batch, L positions, R rotary width, H heads.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from seekax.configuration.model import ModelConfig


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
  """Rotation angle per position of each rotary pair, scaled as configured.

  Args:
    config: rope_theta, rope_head_dim and the fields of rope_scaling.

  Returns:
    float64 [R/2]: radians per position.

  References:
    RoFormer (arXiv 2104.09864); position interpolation (arXiv 2306.15595),
    here `linear`; YaRN (arXiv 2309.00071), with the ramp linear in the pair's
    index, as in DeepSeek's released code, not in the number of rotations.
  """
  width = config.rope_head_dim
  plain = config.rope_theta ** (-np.arange(0, width, 2) / width)
  if config.rope_scaling == 'linear':
    return plain / config.rope_factor
  if config.rope_scaling == 'yarn':
    return _yarn(plain, config)
  if config.rope_scaling == 'llama3':
    return _llama3(plain, config)
  return plain


def _yarn(plain: np.ndarray, config: ModelConfig) -> np.ndarray:
  width = config.rope_head_dim

  def pair_turning(rotations: float) -> float:
    wavelength = config.rope_original_length / (2 * math.pi * rotations)
    return width * math.log(wavelength) / (2 * math.log(config.rope_theta))

  low = max(math.floor(pair_turning(config.yarn_beta_fast)), 0)
  high = min(math.ceil(pair_turning(config.yarn_beta_slow)), width - 1)
  if low == high:
    high += 0.001
  ramp = np.clip((np.arange(width // 2) - low) / (high - low), 0, 1)
  return plain * (1 - ramp) + plain / config.rope_factor * ramp


def _llama3(plain: np.ndarray, config: ModelConfig) -> np.ndarray:
  """Llama 3.1: slow pairs interpolated, fast ones kept, a ramp in between."""
  rotations = config.rope_original_length * plain / (2 * math.pi)
  low, high = config.llama3_low_freq_factor, config.llama3_high_freq_factor
  keep = np.clip((rotations - low) / (high - low), 0, 1)
  return plain * keep + plain / config.rope_factor * (1 - keep)


def _magnitude(factor: float, mscale: float) -> float:
  return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def table_scale(config: ModelConfig) -> float:
  """Factor on cos and sin: 1 for V3, V2-Lite and Kimi-K2."""
  if config.rope_scaling != 'yarn':
    return 1.0
  return _magnitude(config.rope_factor, config.yarn_mscale) / _magnitude(
    config.rope_factor, config.yarn_mscale_all_dim
  )


def softmax_scale(config: ModelConfig) -> float:
  """Factor on the whole attention logit, with YaRN's m squared.

  V3: 192**-0.5 * 1.3688879454**2. m multiplies the parts with and without
  position, and comes from mscale_all_dim, not from mscale.
  """
  scale = config.qk_head_dim**-0.5
  if config.rope_scaling == 'yarn' and config.yarn_mscale_all_dim:
    scale *= _magnitude(config.rope_factor, config.yarn_mscale_all_dim) ** 2
  return scale


def rotate(
  x: jax.Array, positions_BL: jax.Array, config: ModelConfig
) -> jax.Array:
  """Rotates queries or keys by their positions.

  Args:
    x: [B, L, R] or [B, L, H, R].
    positions_BL: integer positions.
    config: gives frequencies, layout of the pairs and scale of the tables.

  Returns:
    The rotated array, in x's shape and dtype; computed in float32.
  """
  frequencies = jnp.asarray(inverse_frequencies(config), jnp.float32)
  angles = positions_BL[..., None].astype(jnp.float32) * frequencies
  if x.ndim == 4:
    angles = angles[:, :, None, :]
  scale = table_scale(config)
  cos, sin = jnp.cos(angles) * scale, jnp.sin(angles) * scale
  return _turn(x, cos, sin, config.rope_layout == 'interleaved')


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _turn(x, cos, sin, interleaved: bool):
  """Maps a pair (a, b) to (a cos - b sin, a sin + b cos); cos, sin [.., R/2].

  Its gradient is the inverse rotation, as cheap as the rotation.
  """
  axis = -1 if interleaved else -2

  def both(first, second):
    return jnp.stack([first, second], axis=axis).reshape(*cos.shape[:-1], -1)

  pairs = x.astype(jnp.float32)
  if interleaved:
    pairs = pairs.reshape(*x.shape[:-1], -1, 2)
    swapped = jnp.flip(pairs, axis=-1).reshape(x.shape)
  else:
    swapped = jnp.roll(pairs, x.shape[-1] // 2, axis=-1)
  turned = pairs.reshape(x.shape) * both(cos, cos) + swapped * both(-sin, sin)
  return turned.astype(x.dtype)


def _turn_forward(x, cos, sin, interleaved):
  return _turn(x, cos, sin, interleaved), (cos, sin)


def _turn_backward(interleaved, saved, turned):
  cos, sin = saved
  return _turn(turned, cos, -sin, interleaved), None, None


_turn.defvjp(_turn_forward, _turn_backward)
