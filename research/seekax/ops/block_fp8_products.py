"""Linear maps whose three products are all in FP8 (DeepSeek-V3, section 3.3).

The forward product, the input's gradient and the weight's gradient multiply
FP8 operands: activations and gradients in tiles of 1 x 128 along the axis that
is summed over, weights in blocks of 128 x 128. For the weight's gradient, which
sums over rows, activations and gradients are divided anew into tiles of
128 x 1, from what they were before. Every 128 products of the sum a float32
total takes over.

On NVIDIA GPUs from Hopper on a kernel multiplies the codes
(`pallas_block_fp8`): on one device, and of the experts' products on a mesh. The
compiler can't split a kernel and would gather all tokens for it. Elsewhere
operands are rounded to FP8 and multiplied in
float32. A code times its scale is rounded once in that, and sums are as exact
as those of float32: within 128 * 2**-24 * sum|a||b| of exact, as a promotion
every 128 products would be, if not to the bit.

Letters: T rows, D input width, F output width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from seekax.configuration.fp8 import Fp8Config
from seekax.ops import backends, pallas_block_fp8
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
  """The products of a linear map, FP8 in, float32 or bfloat16 out.

  Attributes:
    recipe: how FP8 is made and added up.
    power_of_two_input: of the input's scales.
    power_of_two_gradient: of those of the output's gradient.
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
    """Of several experts, rows that fill up have no say in the scales."""
    if x_TD.ndim > 2:
      x_TD = jnp.where(jnp.any(dy_TF != 0, axis=-1, keepdims=True), x_TD, 0)
    dw_DF = self._multiply(
      x_TD, self._input(0), dy_TF, self._gradient(0), (0, 0)
    )
    return dw_DF.astype(dtype)

  def store(self, y_TF: jax.Array, name: str) -> Tiles:
    """In FP8 tiles: half the bytes between the passes."""
    tiles = quantize(y_TF, self._stored())
    return Tiles(keep(tiles.codes, name), keep(tiles.scales, name))

  def load(self, stored: Tiles) -> jax.Array:
    return dequantize(stored, self._stored())

  def _multiply(self, a, a_tiling, b, b_tiling, summed: tuple[int, int]):
    """Sums the product of two matrices over one axis of each, in float32."""
    choice = backends.choose_fp8_product(self.recipe, backends.present())
    if choice.name == 'pallas' and not _is_split_by_compiler():
      return pallas_block_fp8.product(a, a_tiling, b, b_tiling, summed)
    lead = tuple(range(a.ndim - 2))
    if self.recipe.accumulation == 'float32':
      axes = [(len(lead) + axis,) for axis in summed]
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
    """Tiles along the axis that is summed over, or one for the matrix."""
    if self.recipe.scaling == 'tensor':
      return Tiling(0, 0, **values)
    size = self.recipe.tile_size
    return Tiling(*((1, size) if summed else (size, 1)), **values)


def _is_split_by_compiler() -> bool:
  """Whether arrays here are those of several devices, and not one's parts."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.shape.values(), mesh.axis_types, strict=True)
  manual = jax.sharding.AxisType.Manual
  return any(size > 1 and kind != manual for size, kind in kinds)
