"""Matrices in FP8 with one scale per tile, as DeepSeek-V3 trains.

A tile of r x c values has the scale max|x| / 448, so that its largest value is
the largest of E4M3; a value is its code times that scale. Activations and
gradients have tiles of 1 x 128, weights blocks of 128 x 128. A tile at the edge
is partial, as if filled up with zeros.

A device and NumPy give the same bits: scales are products with float32(1/448)
and not quotients (XLA turns division by a constant into a product), reciprocals
are rounded once, and no value that matters is subnormal, because XLA flushes
subnormals to zero on some devices. Codes are rounded in float32, which is
faster than a conversion to eight bits and back.

Letters: M rows, N columns; I, J tiles along them of r and c values.
"""

import dataclasses
import math

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from seekax.ops.reductions import reduce_rows


@dataclasses.dataclass(frozen=True)
class Format:
  """An FP8 format.

  Attributes:
    dtype: name of the dtype in JAX.
    largest: largest value.
    mantissa_bits: number of stored fraction bits.
    smallest_normal: below this, values are equally spaced.
  """

  dtype: str
  largest: float
  mantissa_bits: int
  smallest_normal: float


E4M3 = Format('float8_e4m3fn', 448.0, 3, 2.0**-6)
E5M2 = Format('float8_e5m2', 57344.0, 2, 2.0**-14)
FORMATS = {'e4m3': E4M3, 'e5m2': E5M2}

# Lower bounds for a tile's largest value. Activations: that of the public
# quantiser. Others: where the scale's last code is still a normal float32.
ACTIVATION_FLOOR = 1e-4
FLOOR = 2.0**-90


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How a matrix is divided and scaled.

  Attributes:
    rows: rows of a tile; 0: all.
    columns: columns of a tile; 0: all.
    format: format of the codes.
    power_of_two: whether scales are raised to powers of two, so that codes
      times scale are exact in bfloat16, however they are divided next.
    floor: lower bound for a tile's largest value.
  """

  rows: int
  columns: int
  format: Format = E4M3
  power_of_two: bool = False
  floor: float = FLOOR


@struct.dataclass
class Tiles:
  """A quantised matrix.

  Attributes:
    codes: uint8 [..., M, N], the bits of the FP8 values. (On a CPU, XLA turns
      FP8 arrays that are moved into float16; bytes stay bytes.)
    scales: float32 [..., I, J].
  """

  codes: jax.Array
  scales: jax.Array


def quantize(x: jax.Array, tiling: Tiling) -> Tiles:
  """Returns codes and scales.

  A tile that holds NaN or an infinity is NaN throughout when dequantised.

  Args:
    x: float [..., M, N]; every matrix has tiles of its own.
    tiling: shape of the tiles and format of the codes.
  """
  codes, scales = _scaled(x, tiling)
  codes = codes.astype(tiling.format.dtype)
  codes = _join(jax.lax.bitcast_convert_type(codes, jnp.uint8), x.shape)
  return Tiles(codes, scales[..., 0, :, 0])


def dequantize(tiles: Tiles, tiling: Tiling) -> jax.Array:
  """float32 [..., M, N]: codes times scales."""
  dtype = jnp.dtype(tiling.format.dtype)
  codes = jax.lax.bitcast_convert_type(tiles.codes, dtype)
  codes = _split(codes.astype(jnp.float32), tiling)
  return _join(codes * tiles.scales[..., None, :, None], tiles.codes.shape)


def rounded(x: jax.Array, tiling: Tiling) -> jax.Array:
  """The result of `dequantize(quantize(x))`, without the bytes in between."""
  codes, scales = _scaled(x, tiling)
  return _join(codes * scales, x.shape)


def codes_and_scales(
  x: jax.Array, tiling: Tiling
) -> tuple[jax.Array, jax.Array]:
  """Returns both as float32 [..., M, N], each scale repeated over its tile."""
  codes, scales = _scaled(x, tiling)
  scales = jnp.broadcast_to(scales, codes.shape)
  return _join(codes, x.shape), _join(scales, x.shape)


def _scaled(x, tiling: Tiling):
  """Codes [..., I, r, J, c] as float32 and scales [..., I, 1, J, 1]."""
  kind = tiling.format
  x = _split(x.astype(jnp.float32), tiling)
  largest = reduce_rows(jnp.max, jnp.abs(x))
  largest = jnp.max(largest, axis=-3, keepdims=True)
  scales = jnp.maximum(largest, tiling.floor) * np.float32(1 / kind.largest)
  if tiling.power_of_two:
    scales = next_power_of_two(scales)
  codes = jnp.clip(x * (1 / scales), -kind.largest, kind.largest)
  return _rounded_to(codes, kind), scales


def next_power_of_two(x: jax.Array) -> jax.Array:
  """The least power of two at or above x > 0; NaN and infinity stay."""
  mantissa, exponent = jnp.frexp(x)
  power = jnp.ldexp(jnp.float32(1), exponent - (mantissa == 0.5))
  return jnp.where(jnp.isfinite(x), power, x)


def _rounded_to(x, kind: Format):
  """The format's nearest values, ties to even; |x| is at most its largest.

  Adding a float32 number whose last bit is worth as much as the format's last
  bit, and subtracting it again, rounds away the finer bits. The bounds on |x|
  before, a minimum and a maximum, also keep compilers from fusing the sum with
  the product that makes x.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  power = jax.lax.bitcast_convert_type(bits & 0x7F800000, jnp.float32)
  power = jnp.maximum(power, kind.smallest_normal)
  shift = power * np.float32(1.5 * 2 ** (23 - kind.mantissa_bits))
  return jnp.copysign((x + shift) - shift, x)


def _split(x, tiling: Tiling):
  """[..., M, N] to [..., I, r, J, c], zeros filling partial tiles."""
  *lead, rows, columns = x.shape
  r = min(tiling.rows or rows, rows)
  c = min(tiling.columns or columns, columns)
  i, j = math.ceil(rows / r), math.ceil(columns / c)
  if (i * r, j * c) != (rows, columns):
    edges = [(0, 0)] * len(lead) + [(0, i * r - rows), (0, j * c - columns)]
    x = jnp.pad(x, edges)
  return x.reshape(*lead, i, r, j, c)


def _join(x, shape: tuple[int, ...]):
  """The inverse of `_split`."""
  *lead, i, r, j, c = x.shape
  x = x.reshape(*lead, i * r, j * c)
  return x[..., : shape[-2], : shape[-1]]
