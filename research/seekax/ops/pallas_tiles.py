"""How a grouped product is cut: tile sizes, and the rows of each tile.

An output is cut into tiles, none of which holds rows of two experts: a list
made outside the kernels gives each row tile's expert, first row and end, so
that a group may start at any row. For any group sizes there are at most
ceil(S / tile) + E row tiles; unused ones do nothing. Rows past the last group
form a group of their own.

Letters: S rows, E experts, G groups (the experts, and the rows past them),
N row tiles.
"""

import dataclasses
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

# The smallest edge of a tensor core product.
SMALLEST_TILE = 16


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How a product is cut; the first three are powers of two, 16 or more.

  Attributes:
    rows: rows of an output tile.
    columns: columns of an output tile.
    depth: how much of the contracted axis is multiplied at once.
    warps: warps (of 32 threads) per tile.
    stages: tiles in flight, with the one that is being multiplied.
  """

  rows: int
  columns: int
  depth: int
  warps: int
  stages: int


def product_tiling(
  num_rows: int,
  num_experts: int,
  depth: int,
  columns: int,
  dtype: jax.typing.DTypeLike,
  transposed: bool = False,
) -> Tiling:
  """Tile sizes for rows times weights, chosen by arithmetic, then measured.

  A row tile is about the size of a balanced group, at most 128 rows, so that
  few of its rows are empty. bfloat16 takes 128 columns: two float32 sums of
  128 x 128 (gate and up) take 128 registers a thread with 8 warps, and three
  stages of the three operands take 144 KiB of Hopper's 227 KiB of shared
  memory. float32 doesn't use tensor cores and takes smaller tiles. Compiled for
  an H100, none of these kernels spills registers.

  Args:
    num_rows: S.
    num_experts: E.
    depth: width of a row.
    columns: width of a result.
    dtype: dtype of rows and weights.
    transposed: whether the weights' last axis is contracted.
  """
  edge = _largest_edge(dtype)
  return _tiling(
    _tile_edge(num_rows // num_experts, edge),
    _tile_edge(columns, edge),
    _tile_edge(depth, edge // 2),
    edge,
    few_warps=transposed,
  )


def gradient_tiling(
  width: int, columns: int, dtype: jax.typing.DTypeLike
) -> Tiling:
  """Tile sizes for a weight's gradient, [width, columns]; depth counts rows."""
  edge = _largest_edge(dtype)
  return _tiling(
    _tile_edge(width, edge),
    _tile_edge(columns, edge),
    edge // 2,
    edge,
    few_warps=True,
  )


def _largest_edge(dtype: jax.typing.DTypeLike) -> int:
  return 64 if jnp.dtype(dtype).itemsize > 2 else 128


def _tiling(
  rows: int, columns: int, depth: int, edge: int, few_warps: bool
) -> Tiling:
  few_warps = rows < edge or (few_warps and edge == 128)
  return Tiling(
    rows,
    columns,
    depth,
    warps=4 if few_warps else 8,
    stages=3 if edge == 128 else 2,
  )


def _tile_edge(size: int, largest: int) -> int:
  """The least power of two that is at least `size`, within bounds."""
  return min(max(pl.next_power_of_2(max(size, 1)), SMALLEST_TILE), largest)


class RowTiles(NamedTuple):
  """The rows of each row tile.

  Attributes:
    expert_N: int32; E for rows past the groups, whose results are 0.
    first_N: first row of the tile.
    end_N: one past its last row; equal to first_N for an unused tile.
  """

  expert_N: jax.Array
  first_N: jax.Array
  end_N: jax.Array


def row_tiles(sizes_E: jax.Array, num_rows: int, tile: int) -> RowTiles:
  """Cuts rows into tiles of at most `tile` rows of one group.

  Args:
    sizes_E: number of rows of each expert.
    num_rows: S.
    tile: number of rows of a tile.

  Returns:
    ceil(S / tile) + E tiles, which cover every row exactly once.
  """
  num_experts = sizes_E.shape[0]
  end_E = group_ends(sizes_E, num_rows)
  end_G = jnp.append(end_E, num_rows)
  start_G = jnp.append(0, end_E)
  tiles_G = (end_G - start_G + tile - 1) // tile
  tiles_end_G = jnp.cumsum(tiles_G)
  index_N = jnp.arange(pl.cdiv(num_rows, tile) + num_experts, dtype=jnp.int32)
  # Unrolled it is one GPU kernel instead of a loop of many.
  group_N = jnp.searchsorted(
    tiles_end_G, index_N, side='right', method='scan_unrolled'
  )
  leftover_N = group_N > num_experts
  group_N = jnp.minimum(group_N, num_experts)
  within_N = index_N - (tiles_end_G - tiles_G)[group_N]
  first_N = start_G[group_N] + within_N * tile
  end_N = jnp.minimum(first_N + tile, end_G[group_N])
  return RowTiles(
    expert_N=group_N.astype(jnp.int32),
    first_N=jnp.where(leftover_N, 0, first_N).astype(jnp.int32),
    end_N=jnp.where(leftover_N, 0, end_N).astype(jnp.int32),
  )


def group_ends(sizes_E: jax.Array, num_rows: int) -> jax.Array:
  """One past each expert's last row, at most `num_rows`."""
  return jnp.minimum(jnp.cumsum(sizes_E.astype(jnp.int32)), num_rows)
