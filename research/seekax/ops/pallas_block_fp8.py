"""A kernel for NVIDIA GPUs that multiplies FP8 matrices with a scale per tile.

The tensor cores add up 128 products of codes; the sum is multiplied with the
scales of both tiles and added to a float32 total in ordinary registers
(DeepSeek-V3, section 3.3.2: promotion every 128 elements). Both operands have
the summed axis last, the only layout in which Hopper multiplies eight bits, so
a product over rows starts by transposing codes.

The kernel is written in Pallas and compiled by Triton; see
`pallas_grouped_kernels`. Triton adds the tensor cores' sums to float32 every 32
products, so sums are closer to exact than those of the paper.

Letters: B matrices, M rows and N columns of the result, K summed, J tiles of K.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from seekax.ops.block_fp8 import quantize, Tiling
from seekax.ops.needs import gpu_problem, HOPPER, Need

# Number of products that share one scale of each operand.
TILE = 128


@dataclasses.dataclass(frozen=True)
class Cut:
  """How a product is cut. Sizes are powers of two, 16 or more.

  The defaults were the fastest of seven cuts on an H200.

  Attributes:
    rows: rows of a result tile.
    columns: columns of a result tile.
    warps: warps (of 32 threads) per tile.
    stages: operand tiles in flight, with the one that is being multiplied.
    group: number of row tiles whose programs run together, so that they read
      the same columns while these are in the cache.
  """

  rows: int = 128
  columns: int = 64
  warps: int = 4
  stages: int = 4
  group: int = 8


def product(
  a: jax.Array,
  a_tiling: Tiling,
  b: jax.Array,
  b_tiling: Tiling,
  summed: tuple[int, int],
  *,
  interpret: bool = False,
  cut: Cut | None = None,
) -> jax.Array:
  """Rounds two matrices to FP8 and sums their product over one axis of each.

  Args:
    a: [..., M, K], or [..., K, M].
    a_tiling: 128 values of the summed axis per tile, or one tile in all; E4M3.
    b: [..., K, N], or [..., N, K]; its leading axes are those of a.
    b_tiling: as a_tiling.
    summed: which of the last two axes (0 or 1) is K, for a and for b.
    interpret: runs the kernel's steps in plain JAX, on any device, slowly.
    cut: how the product is cut; None chooses.

  Returns:
    float32 [..., M, N].
  """
  cut = cut or Cut()
  rows, columns = a.shape[-1 - summed[0]], b.shape[-1 - summed[1]]
  lead = a.shape[:-2]
  operands = (
    *operand(a, a_tiling, summed[0], cut.rows),
    *operand(b, b_tiling, summed[1], cut.columns),
  )
  out_BMN = multiply(operands, interpret=interpret, cut=cut)
  return out_BMN[:, :rows, :columns].reshape(*lead, rows, columns)


def operand(
  x: jax.Array, tiling: Tiling, summed: int, edge: int
) -> tuple[jax.Array, jax.Array]:
  """Rounds a matrix to FP8 in the form that `multiply` takes.

  Args:
    x: [..., M, K], or [..., K, M].
    tiling: how x is divided.
    summed: 1 if K is the last axis, 0 if it is the one before.
    edge: M is padded to a multiple of this.

  Returns:
    Codes [B, M, K] and float32 scales [B, J, M], padded to whole tiles.
  """
  tiles = quantize(x, tiling)
  codes, scales = tiles.codes, tiles.scales
  sides = [tiling.rows or x.shape[-2], tiling.columns or x.shape[-1]]
  if summed == 0:
    codes, scales = (jnp.swapaxes(y, -1, -2) for y in (codes, scales))
    sides.reverse()
  rows, depth = codes.shape[-2:]
  num_tiles = math.ceil(depth / TILE)
  if sides[1] >= depth:
    scales = jnp.broadcast_to(scales, (*scales.shape[:-1], num_tiles))
  scales = jnp.repeat(scales, sides[0], axis=-2)[..., :rows, :]
  more = -rows % edge
  codes = codes.reshape(-1, rows, depth)
  codes = jnp.pad(codes, ((0, 0), (0, more), (0, -depth % TILE)))
  scales = jnp.swapaxes(scales.reshape(-1, rows, num_tiles), 1, 2)
  scales = jnp.pad(scales, ((0, 0), (0, 0), (0, more)))
  codes = jax.lax.bitcast_convert_type(codes, tiling.format.dtype)
  return codes, scales


def multiply(
  operands: Sequence[jax.Array], *, interpret: bool, cut: Cut
) -> jax.Array:
  """float32 [B, M, N] from codes and scales of a and b, made by `operand`."""
  a_BMK, a_scales_BJM, b_BNK, b_scales_BJN = operands
  batch, rows, depth = a_BMK.shape
  columns, num_tiles = b_BNK.shape[1], a_scales_BJM.shape[1]
  # Inside shard_map, results vary over an axis if any argument does.
  kinds = (jax.typeof(x).manual_axis_type for x in operands)
  varying = frozenset().union(*(kind.varying for kind in kinds))
  kind = jax.sharding.ManualAxisType(varying=varying)
  across, down = columns // cut.columns, rows // cut.rows

  def place(program):
    """(row tile, column tile): down a group of row tiles, then across."""
    size = cut.group * across
    first = program // size * cut.group
    high = jnp.minimum(down - first, cut.group)
    within = program % size
    return first + within % high, within // high

  def row_tile(program):
    return place(program)[0]

  def column_tile(program):
    return place(program)[1]

  return pl.pallas_call(
    functools.partial(_kernel, cut=cut, interpret=interpret),
    out_shape=jax.ShapeDtypeStruct(
      (batch, rows, columns), jnp.float32, manual_axis_type=kind
    ),
    in_specs=[
      pl.BlockSpec((None, cut.rows, depth), lambda p, b: (b, row_tile(p), 0)),
      pl.BlockSpec(
        (None, num_tiles, cut.rows), lambda p, b: (b, 0, row_tile(p))
      ),
      pl.BlockSpec(
        (None, cut.columns, depth), lambda p, b: (b, column_tile(p), 0)
      ),
      pl.BlockSpec(
        (None, num_tiles, cut.columns), lambda p, b: (b, 0, column_tile(p))
      ),
    ],
    out_specs=pl.BlockSpec(
      (None, cut.rows, cut.columns), lambda p, b: (b, *place(p))
    ),
    grid=(across * down, batch),
    compiler_params=triton.CompilerParams(
      num_warps=cut.warps, num_stages=cut.stages
    ),
    interpret=interpret,
    name='block_fp8_product',
  )(*operands)


def _kernel(
  a_ref, a_scales_ref, b_ref, b_scales_ref, out_ref, *, cut: Cut, interpret
):
  def step(tile, total):
    span = pl.ds(tile * TILE, TILE)
    a, b = a_ref[:, span], b_ref[:, span]
    if interpret:  # CPUs can't multiply FP8.
      a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    part = jax.lax.dot_general(
      a,
      b,
      (((1,), (1,)), ((), ())),
      precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=jnp.float32,
    )
    scale = a_scales_ref[tile, :][:, None] * b_scales_ref[tile, :][None, :]
    return total + part * scale

  zero = jnp.zeros((cut.rows, cut.columns), jnp.float32)
  steps = a_scales_ref.shape[0]
  out_ref[:, :] = jax.lax.fori_loop(0, steps, step, zero)


def problem(need: Need) -> str:
  """Why this kernel can't make such products, or ''."""
  recipe = need.fp8
  found = '' if need.interpret else gpu_problem(need, HOPPER)
  for name, known in (
    ('tile_size', 128),
    ('gradient_format', 'e4m3'),
    ('accumulation', 'float32'),
  ):
    asked = getattr(recipe, name)
    if not found and asked != known:
      found = f'takes fp8.{name}={known}, not {asked}; take emulated'
  return found
