"""Linear maps whose three products are all in FP8 (DeepSeek-V3, section 3.3).

The forward product, the input's gradient and the weight's gradient multiply
FP8 operands: activations and gradients in tiles of 1 x 128 along the summed
axis, weights in blocks of 128 x 128. For the weight's gradient, which sums over
rows, activations and gradients are quantised again in tiles of 128 x 1, from
the values before the first quantisation. Every 128 products the sum is added to
a float32 total.

On NVIDIA GPUs from Hopper on a kernel multiplies the codes
(`pallas_block_fp8`): for all maps on one device, and for the experts' on a
mesh. The compiler can't split a kernel and would gather all tokens for it.
Elsewhere operands are rounded to FP8 and multiplied in float32. There a code
times its scale is rounded once, and sums are as exact as float32 sums: within
128 * 2**-24 * sum|a||b| of the exact value, the same bound as for a promotion
every 128 products, though not the same bits.

Letters: T rows, D input width, F output width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from seekax.configuration.fp8 import Fp8Config
from seekax.ops import backends, devices, pallas_block_fp8
from seekax.ops import block_fp8_accumulation as accumulation
from seekax.ops.block_fp8 import (
  ACTIVATION_FLOOR,
  codes_and_scales,
  dequantize,
  FORMATS,
  quantize,
  rounded,
  Tiles,
  Tiling,
)
from seekax.ops.rematerialisation import keep


@dataclasses.dataclass(frozen=True)
class Fp8Products:
  """The products of a linear map: FP8 operands, float32 or bfloat16 results.

  Attributes:
    recipe: how operands are quantised and sums accumulated.
    power_of_two_input: whether the input's scales are powers of two.
    power_of_two_gradient: whether the output gradient's scales are.
  """

  recipe: Fp8Config
  power_of_two_input: bool = False
  power_of_two_gradient: bool = False

  def forward(self, x_TD, w_DF):
    y_TF = self._multiply(x_TD, self._input(1), w_DF, self._weight(), (1, 0))
    return y_TF.astype(x_TD.dtype)

  def input_gradient(self, dy_TF, w_DF, dtype):
    dx_TD = self._multiply(
      dy_TF, self._gradient(1), w_DF, self._weight(), (1, 1)
    )
    return dx_TD.astype(dtype)

  def weight_gradient(self, x_TD, dy_TF, dtype):
    """x^T dy; with several experts, padding rows don't affect the scales."""
    if x_TD.ndim > 2:
      x_TD = jnp.where(jnp.any(dy_TF != 0, axis=-1, keepdims=True), x_TD, 0)
    dw_DF = self._multiply(
      x_TD, self._input(0), dy_TF, self._gradient(0), (0, 0)
    )
    return dw_DF.astype(dtype)

  def store(self, y_TF: jax.Array, name: str) -> Tiles:
    """Stores y in FP8 tiles, which halves its bytes between the passes."""
    tiles = quantize(y_TF, self._stored())
    return Tiles(keep(tiles.codes, name), keep(tiles.scales, name))

  def load(self, stored: Tiles) -> jax.Array:
    return dequantize(stored, self._stored())

  def _multiply(self, a, a_tiling, b, b_tiling, summed: tuple[int, int]):
    """Sums the product of two matrices over one axis of each, in float32."""
    choice = backends.choose_fp8_product(self.recipe, devices.present())
    if choice.name == 'pallas' and not _is_split_by_compiler():
      return pallas_block_fp8.product(a, a_tiling, b, b_tiling, summed)
    lead = tuple(range(a.ndim - 2))
    if self.recipe.accumulation == 'float32':
      axes = (len(lead) + summed[0],), (len(lead) + summed[1],)
      return jax.lax.dot_general(
        rounded(a, a_tiling),
        rounded(b, b_tiling),
        (axes, (lead, lead)),
        precision=jax.lax.Precision.HIGHEST,
      )
    a_MK, scales_MK = codes_and_scales(a, a_tiling)
    b_KN, scales_KN = codes_and_scales(b, b_tiling)
    if summed[0] == 0:
      a_MK, scales_MK = (jnp.swapaxes(x, -1, -2) for x in (a_MK, scales_MK))
    if summed[1] == 1:
      b_KN, scales_KN = (jnp.swapaxes(x, -1, -2) for x in (b_KN, scales_KN))
    if self.recipe.accumulation == 'unpromoted':
      scale = scales_MK[..., :1, :1] * scales_KN[..., :1, :1]
      return accumulation.product(a_MK, b_KN) * scale
    return accumulation.promoted_product(
      a_MK, b_KN, scales_MK, scales_KN, self.recipe.tile_size
    )

  def _input(self, summed: int) -> Tiling:
    return self._tiles(
      summed,
      power_of_two=self.power_of_two_input,
      floor=ACTIVATION_FLOOR,
    )

  def _gradient(self, summed: int) -> Tiling:
    tiling = self._tiles(
      summed,
      format=FORMATS[self.recipe.gradient_format],
      power_of_two=self.power_of_two_gradient,
    )
    if self.recipe.gradient_scaling == 'blocks':
      size = self.recipe.tile_size
      tiling = dataclasses.replace(tiling, rows=size, columns=size)
    return tiling

  def _weight(self) -> Tiling:
    size = 0 if self.recipe.scaling == 'tensor' else self.recipe.tile_size
    return Tiling(size, size)

  def _stored(self) -> Tiling:
    return Tiling(1, self.recipe.tile_size, floor=ACTIVATION_FLOOR)

  def _tiles(self, summed: int, **values) -> Tiling:
    """Tiles along the summed axis, or one tile for the whole matrix."""
    if self.recipe.scaling == 'tensor':
      return Tiling(0, 0, **values)
    size = self.recipe.tile_size
    return Tiling(*((1, size) if summed else (size, 1)), **values)


def _is_split_by_compiler() -> bool:
  """Whether arrays here span several devices, rather than being one's part."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.shape.values(), mesh.axis_types, strict=True)
  manual = jax.sharding.AxisType.Manual
  return any(size > 1 and kind != manual for size, kind in kinds)
