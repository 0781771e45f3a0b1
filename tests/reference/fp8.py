"""FP8 tiles, slowly: a code from its bits, every value by its own scale.

Also the register in which Hopper's tensor cores add up, product by product.
"""

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


def e5m2_value(code: int) -> float:
  """Sign, 5 bits of exponent with bias 15, 2 of mantissa; all ones: none."""
  sign = -1.0 if code & 0x80 else 1.0
  exponent, mantissa = code >> 2 & 31, code & 3
  if exponent == 31:
    return math.nan if mantissa else sign * math.inf
  if exponent == 0:
    return sign * mantissa * 2.0**-16
  return sign * (4 + mantissa) * 2.0 ** (exponent - 17)


# Value of every code, largest value.
KINDS = {
  'e4m3': ([value(code) for code in range(256)], 448.0),
  'e5m2': ([e5m2_value(code) for code in range(256)], 57344.0),
}


def tile_scale(
  largest: np.float32, kind: str, power_of_two: bool, floor: float
) -> np.float32:
  """The scale of a tile whose largest absolute value this is."""
  if not np.isfinite(largest):
    return largest
  inverse = np.float32(1 / KINDS[kind][1])
  scale = np.float32(max(largest, np.float32(floor))) * inverse
  if power_of_two:
    mantissa, exponent = math.frexp(scale)
    scale = np.float32(math.ldexp(1.0, exponent - (mantissa == 0.5)))
  return scale


def tile_codes(values: np.ndarray, scale: np.float32, kind: str) -> np.ndarray:
  """The nearest code of each float32 value; 255 for what is no number."""
  table, largest = KINDS[kind]
  finite = np.array([abs(x) for x in table[:128] if math.isfinite(x)])
  codes = np.full(values.shape, 255, np.uint8)
  with np.errstate(invalid='ignore', divide='ignore'):
    scaled = values * (np.float32(1) / scale)
  for place, x in np.ndenumerate(scaled):
    if not np.isnan(x):
      distances = np.abs(finite - min(abs(float(x)), largest))
      near = np.flatnonzero(distances == distances.min())
      even = [code for code in near if code % 2 == 0]
      code = even[0] if len(near) > 1 else near[0]
      codes[place] = code | (0x80 if np.signbit(x) else 0)
  return codes


def quantize_tiles(
  values: np.ndarray,
  rows: int,
  columns: int,
  kind: str = 'e4m3',
  power_of_two: bool = False,
  floor: float = 2.0**-90,
) -> tuple[np.ndarray, np.ndarray]:
  """Codes and scales of float32 [M, N] in tiles, the last ones partial."""
  rows, columns = rows or len(values), columns or values.shape[1]
  tiles = math.ceil(len(values) / rows), math.ceil(values.shape[1] / columns)
  codes = np.zeros(values.shape, np.uint8)
  scales = np.zeros(tiles, np.float32)
  for i, j in np.ndindex(tiles):
    part = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
    largest = np.abs(values[part]).max()
    scales[i, j] = tile_scale(largest, kind, power_of_two, floor)
    codes[part] = tile_codes(values[part], scales[i, j], kind)
  return codes, scales


def round_tiles(values: np.ndarray, rows: int, columns: int, **kwargs):
  """float32: every code times its scale, rounded once."""
  codes, scales = quantize_tiles(values, rows, columns, **kwargs)
  table = np.array(KINDS[kwargs.get('kind', 'e4m3')][0], np.float32)
  out = np.zeros(values.shape, np.float32)
  for (r, c), code in np.ndenumerate(codes):
    i = r // (rows or len(values))
    j = c // (columns or values.shape[1])
    out[r, c] = table[code] * scales[i, j]
  return out


def cut(x: float, exponent: int) -> float:
  """x without what is finer than 13 bits below 2**exponent."""
  step = 2.0 ** (exponent - 13)
  return math.trunc(x / step) * step


def tensor_core_sum(products: np.ndarray) -> float:
  """Groups of 32 aligned to their largest, added to a register of 14 bits."""
  register = 0.0
  for start in range(0, len(products), 32):
    group = [float(x) for x in products[start : start + 32]]
    largest = max(map(abs, group))
    if largest:
      exponent = math.frexp(largest)[1] - 1
      total = register + sum(cut(x, exponent) for x in group)
      register = cut(total, math.frexp(total)[1] - 1) if total else 0.0
  return register


def tensor_core_product(a_MK: np.ndarray, b_KN: np.ndarray) -> np.ndarray:
  """a times b in that register; sums of a few thousand codes are exact."""
  rows = [
    [tensor_core_sum(a_K * b_K) for b_K in b_KN.T.astype(np.float64)]
    for a_K in a_MK.astype(np.float64)
  ]
  return np.array(rows)


def silu_parts(gate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """silu and its derivative."""
  s = 1 / (1 + np.exp(-gate))
  return gate * s, s * (1 + gate * (1 - s))


def swiglu(x, gate, up, down, dy, scale, size: int, routed: bool):
  """SwiGLU of one expert's rows with all nine products of FP8 operands.

  Args:
    x: float32 rows [T, D].
    gate: W1 [D, F].
    up: W3.
    down: W2 [F, D].
    dy: gradient of the result.
    scale: a factor of every row.
    size: of tiles and blocks.
    routed: scales of x and of dy are powers of two.

  Returns:
    (result, gradients of x, scale, W1, W3, W2).
  """

  def tiles(values, rows, columns, two=False, floor=2.0**-90):
    values = values.astype(np.float32)
    found = round_tiles(values, rows, columns, power_of_two=two, floor=floor)
    return found.astype(np.float64)

  def sent(values, rows, columns, two=False):
    return tiles(values, rows, columns, two, floor=1e-4)

  w1, w3, w2 = (tiles(w, size, size) for w in (gate, up, down))
  own = sent(x, 1, size, routed)
  gate_TF, up_TF = own @ w1, own @ w3
  hidden = silu_parts(gate_TF)[0] * up_TF * scale[:, None]
  y = sent(hidden, 1, size) @ w2
  gate_TF, up_TF = sent(gate_TF, 1, size), sent(up_TF, 1, size)
  silu, slope = silu_parts(gate_TF)
  dhidden = tiles(dy, 1, size, routed) @ w2.T
  dscale = (dhidden * silu * up_TF).sum(axis=1)
  dgate = dhidden * scale[:, None] * up_TF * slope
  dup = dhidden * scale[:, None] * silu
  dx = tiles(dgate, 1, size) @ w1.T + tiles(dup, 1, size) @ w3.T
  x_T = sent(x, size, 1, routed).T
  hidden_T = sent(silu * up_TF * scale[:, None], size, 1).T
  return (
    y,
    dx,
    dscale,
    x_T @ tiles(dgate, size, 1),
    x_T @ tiles(dup, size, 1),
    hidden_T @ tiles(dy, size, 1, routed),
  )
