"""The group `fp8`: how linear layers are rounded under train.precision=fp8."""

import dataclasses

from seekax.configuration.fields import (
  check_positive,
  key,
  require,
  require_choice,
)

# Values along a side of FP8's tiles and blocks (DeepSeek-V3, section 3.3.2).
FP8_TILE = 128
FP8_SCALINGS = ('tiles', 'tensor')
FP8_GRADIENT_FORMATS = ('e4m3', 'e5m2')
FP8_GRADIENT_SCALINGS = ('tiles', 'blocks')
FP8_ACCUMULATIONS = ('float32', 'tensor_core', 'unpromoted')
FP8_PRODUCTS = ('pallas', 'emulated')
# Products that a tensor core adds at once.
FP8_GROUP = 32


@dataclasses.dataclass(frozen=True)
class Fp8Config:
  """FP8 of linear layers under train.precision=fp8 (V3, section 3.3).

  The defaults are V3's recipe; the other values are for ablations.
  """

  tile_size: int = key(128, 'width n of tiles (1 x n) and blocks (n x n)')
  scaling: str = key(
    'tiles', 'scales of operands: tiles (V3); tensor: one per matrix'
  )
  gradient_format: str = key('e4m3', 'format of gradients: e4m3 (V3) or e5m2')
  gradient_scaling: str = key(
    'tiles', 'scales of gradients: per tile (V3) or block'
  )
  accumulation: str = key(
    'float32',
    'sums of products: float32; tensor_core: 14 bits within a tile; '
    'unpromoted: 14 bits; the last two are very slow',
  )
  products: str = key(
    'auto',
    'backend: auto; pallas: for NVIDIA GPUs from Hopper on; emulated: float32 '
    'products of rounded operands, on any device',
  )

  def __post_init__(self):
    for name, choices in (
      ('scaling', FP8_SCALINGS),
      ('gradient_format', FP8_GRADIENT_FORMATS),
      ('gradient_scaling', FP8_GRADIENT_SCALINGS),
      ('accumulation', FP8_ACCUMULATIONS),
      ('products', ('auto', *FP8_PRODUCTS)),
    ):
      require_choice(f'fp8.{name}', getattr(self, name), choices)
    check_positive('fp8', self, ('tile_size',))
    require(
      self.scaling == 'tiles' or self.gradient_scaling == 'tiles',
      f'fp8.gradient_scaling={self.gradient_scaling} needs more than one scale '
      f'per matrix; set fp8.scaling=tiles',
    )
    require(
      self.scaling == 'tensor' or self.accumulation != 'unpromoted',
      'fp8.accumulation=unpromoted adds up products of different scales; set '
      'fp8.scaling=tensor, or fp8.accumulation=tensor_core',
    )
    require(
      self.accumulation != 'tensor_core' or self.tile_size % FP8_GROUP == 0,
      f'fp8.tile_size={self.tile_size} is no multiple of the {FP8_GROUP} '
      'products that fp8.accumulation=tensor_core adds at once',
    )
