"""E4M3 blocks, slowly: a code from its bits, every value by its own scale."""

import math

import numpy as np

BLOCK = 128
NAN = (0x7F, 0xFF)


def value(code: int) -> float:
  """The value of a code: sign, 4 bits of exponent with bias 7, 3 of mantissa.

  There is no infinity; all ones is no number.
  """
  if code in NAN:
    return math.nan
  sign = -1.0 if code & 0x80 else 1.0
  exponent, mantissa = code >> 3 & 15, code & 7
  if exponent == 0:
    return sign * mantissa * 2.0**-9
  return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


_NOT_NEGATIVE = [value(code) for code in range(0x7F)]


def nearest(x: float) -> int:
  """The code nearest to a number of at most 448; a tie goes to the even one."""
  sign = 0x80 if math.copysign(1.0, x) < 0 else 0
  distances = [
    (abs(abs(x) - known), code & 1, code)
    for code, known in enumerate(_NOT_NEGATIVE)
  ]
  return sign | min(distances)[2]


def dequantize(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """float32 values of codes uint8 [out, in]."""
  table = np.array([value(code) for code in range(256)], np.float32)
  out = np.zeros(codes.shape, np.float32)
  for r in range(codes.shape[0]):
    for block in range(scales.shape[1]):
      columns = slice(block * BLOCK, (block + 1) * BLOCK)
      out[r, columns] = table[codes[r, columns]] * scales[r // BLOCK, block]
  return out


def quantize(
  values: np.ndarray, power_of_two: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Codes uint8 and float32 scales, block by block, number by number."""
  rows, columns = values.shape
  blocks = math.ceil(rows / BLOCK), math.ceil(columns / BLOCK)
  codes, scales = np.zeros((rows, columns), np.uint8), np.zeros(blocks)
  for i in range(blocks[0]):
    for j in range(blocks[1]):
      part = np.s_[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
      largest = np.abs(values[part]).max()
      scale = np.float32(largest / np.float32(448)) if largest else 1.0
      if power_of_two:
        scale = 2.0 ** math.ceil(math.log2(scale))
      scales[i, j] = scale
      scaled = values[part] / np.float32(scale)
      codes[part] = [
        [nearest(min(max(x, -448), 448)) for x in r] for r in scaled
      ]
  return codes, scales.astype(np.float32)
