"""FP8 matrices on disk: blocks of 128 x 128 values with one scale each.

A weight W [out, in] is stored as E4M3 codes and, under the weight's name plus
`_scale_inv`, float32 scales [ceil(out/128), ceil(in/128)]. The scale is the
multiplier, although its name says inverse:

  W[r, c] = code[r, c] * scale[r // 128, c // 128]

Blocks at the edges may be partial.
"""

import math

import ml_dtypes
import numpy as np

BLOCK = 128
MAX = 448.0  # Largest E4M3 value.
SCALE_SUFFIX = '_scale_inv'
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
# float32 value of each of the 256 codes.
_VALUES = np.arange(256, dtype=np.uint8).view(_E4M3).astype(np.float32)


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of a matrix's scales."""
  return tuple(math.ceil(size / BLOCK) for size in shape)


def dequantize(
  codes: np.ndarray, scales: np.ndarray, dtype: np.dtype
) -> np.ndarray:
  """Expands codes: the product is float32 and is rounded once.

  Args:
    codes: E4M3 [out, in].
    scales: float32 [ceil(out/128), ceil(in/128)].
    dtype: dtype of the result.

  Returns:
    [out, in].
  """
  out = np.empty(codes.shape, dtype)
  codes = codes.view(np.uint8)
  # A block has one scale, so a table holds its 256 possible values. The entries
  # of codes that don't occur in the block may overflow.
  for i, row in enumerate(scales):
    with np.errstate(over='ignore', invalid='ignore'):
      tables = (_VALUES * row[:, None]).astype(dtype)
    rows = slice(i * BLOCK, (i + 1) * BLOCK)
    for j, table in enumerate(tables):
      columns = slice(j * BLOCK, (j + 1) * BLOCK)
      out[rows, columns] = table[codes[rows, columns]]
  return out


def quantize(
  values: np.ndarray, power_of_two: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Returns codes and scales: scale = amax / 448, code = round(value / scale).

  Args:
    values: float32 [out, in]; only the last block of an axis may be partial.
    power_of_two: raise every scale to a power of two (DeepSeek-V3.1, ue8m0).

  Returns:
    (E4M3 [out, in], float32 [ceil(out/128), ceil(in/128)]). A block of zeros
    has scale 1.

  References:
    DeepSeek-V3, section 3.3.2.
  """
  rows, columns = values.shape
  blocks = scale_shape(values.shape)
  padded = np.zeros((blocks[0] * BLOCK, blocks[1] * BLOCK), np.float32)
  padded[:rows, :columns] = values
  tiles = padded.reshape(blocks[0], BLOCK, blocks[1], BLOCK)
  largest = np.maximum(tiles.max(axis=(1, 3)), -tiles.min(axis=(1, 3)))
  scales = np.where(largest > 0, largest, np.float32(MAX)) / np.float32(MAX)
  # A scale may be subnormal, or 0 for a block of the smallest values.
  scales = np.maximum(scales, np.finfo(np.float32).tiny)
  if power_of_two:
    mantissa, exponent = np.frexp(scales)
    scales = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
  tiles /= scales[:, None, :, None]
  np.clip(tiles, -MAX, MAX, out=tiles)
  codes = padded[:rows, :columns].astype(_E4M3)
  return codes, scales.astype(np.float32)
