"""Sums of products with about 14 bits, as Hopper's tensor cores add them.

Products are taken in groups of 32. Within a group they are aligned to the
largest exponent and keep 13 bits of fraction; finer bits are truncated. The sum
is added to a register with 1 bit of sign, 8 of exponent and 13 of fraction, and
finer bits are truncated again (DeepSeek-V3, section 3.3.2; "Insights into
DeepSeek-V3", section 3.1.1). Promotion adds the register to a float32 sum after
a number of products, and resets it to zero.

Everything here is exact in float32, so that the same codes give the same bits
on every device. It is slow: a reference that shows what promotion gains.

Letters: M rows, N columns, K reduction, G products of a group, B blocks between
promotions.
"""

import jax
import jax.numpy as jnp

from seekax.configuration.fp8 import FP8_GROUP

FRACTION_BITS = 13
_FLOAT32_FRACTION_BITS = 23
_EXPONENT = 0x7F800000
_SIGN_LESS = 0x7FFFFFFF


def product(a_MK: jax.Array, b_KN: jax.Array) -> jax.Array:
  """a times b, accumulated in the register.

  Args:
    a_MK: float32 values of FP8 codes, [..., M, K].
    b_KN: likewise, [..., K, N].

  Returns:
    float32 [..., M, N].
  """
  groups = _blocks(a_MK, -1, FP8_GROUP), _blocks(b_KN, -2, FP8_GROUP)

  def add(register_MN, pair):
    a_MG, b_GN = pair
    products_MGN = a_MG[..., :, :, None] * b_GN[..., None, :, :]
    return _add_cut(register_MN, _aligned_sum(products_MGN)), None

  start_MN = jnp.zeros((*a_MK.shape[:-1], b_KN.shape[-1]), jnp.float32)
  return jax.lax.scan(add, start_MN, groups)[0]


def promoted_product(
  a_MK: jax.Array,
  b_KN: jax.Array,
  scales_MK: jax.Array,
  scales_KN: jax.Array,
  interval: int,
) -> jax.Array:
  """The same, but with a promotion every `interval` products.

  Args:
    a_MK: float32 values of FP8 codes, [..., M, K].
    b_KN: likewise, [..., K, N].
    scales_MK: scales of a's codes; equal within an interval.
    scales_KN: scales of b's codes; equal within an interval.
    interval: number of products between promotions, a multiple of 32.

  Returns:
    float32 [..., M, N], multiplied with the scales.
  """
  scale_BMN = (
    _blocks(scales_MK, -1, interval)[..., :, :1]
    * _blocks(scales_KN, -2, interval)[..., :1, :]
  )
  partial_BMN = product(
    _blocks(a_MK, -1, interval), _blocks(b_KN, -2, interval)
  )
  return jnp.sum(partial_BMN * scale_BMN, axis=0)


def _blocks(x, axis: int, size: int):
  """Moves blocks of an axis to a leading axis; zeros fill the last block."""
  short = -x.shape[axis] % size
  edges = [(0, 0)] * x.ndim
  edges[axis] = (0, short)
  x = jnp.pad(x, edges)
  at = x.ndim + axis
  x = x.reshape(*x.shape[:at], -1, size, *x.shape[at + 1 :])
  return jnp.moveaxis(x, at, 0)


def _aligned_sum(products_MGN):
  """The sum over G of products cut to 13 bits below the largest's exponent."""
  bits = jax.lax.bitcast_convert_type(products_MGN, jnp.int32)
  largest = jnp.max(bits & _EXPONENT, axis=-2, keepdims=True)
  power = jax.lax.bitcast_convert_type(largest, jnp.float32)
  step = power * jnp.float32(2.0**-FRACTION_BITS)
  # The divisor is 1 for a group of zeros; NaN propagates.
  counts = jnp.trunc(products_MGN / jnp.where(step == 0, 1.0, step))
  return jnp.sum(counts, axis=-2) * step[..., 0, :]


def _add_cut(a, b):
  """a + b, truncated towards zero to 13 bits of fraction.

  The float32 sum may have been rounded up to a number of exactly 13 bits. Its
  error is known exactly; where it was rounded up, the next smaller number is
  truncated.
  """
  total = a + b
  other = total - a
  error = (a - (total - other)) + (b - other)
  bits = jax.lax.bitcast_convert_type(total, jnp.int32)
  too_large = (error != 0) & ((error < 0) != (bits < 0))
  size = (bits & _SIGN_LESS) - too_large
  cut = (1 << (_FLOAT32_FRACTION_BITS - FRACTION_BITS)) - 1
  cut_bits = (size & ~cut) | (bits & ~_SIGN_LESS)
  cut_total = jax.lax.bitcast_convert_type(cut_bits, jnp.float32)
  return jnp.where(jnp.isfinite(total), cut_total, total)
