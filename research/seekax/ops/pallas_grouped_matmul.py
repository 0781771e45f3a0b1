"""Grouped products as kernels for GPUs: rows sorted by expert, any group sizes.

The kernels are written in Pallas and compiled by Triton. An output is cut into
tiles, none of which holds rows of two experts: a list made outside the kernel
names each row tile's expert, first row and end, so that a group may start at
any row. Whatever the sizes, there are at most ceil(S / tile) + E row tiles;
those left over do nothing. Rows past the last group are a group of their own,
which is filled with zeros. The gradient of the weights is a kernel whose
programs each run over the rows of one expert.

All products add up in float32; float32 inputs are multiplied in full float32,
not in TF32. Offsets become 64 bits wide where an array is larger than 4 GiB, as
the expert weights of the 671B model are; Pallas does that by itself. jax 0.12
warns that a later version will drop Pallas for Triton; setup.py stops below.

Letters: S rows, E experts, G groups (the experts, and the rows past them),
N row tiles, D width of a row, F width of a result.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

# The least edge of a tensor core's product.
SMALLEST_TILE = 16


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How a product is cut. All but the last two are powers of two, 16 or more.

  Attributes:
    rows: rows of an output tile.
    columns: columns of an output tile.
    depth: how much of the contracted axis is multiplied at once.
    warps: of 32 threads, per tile.
    stages: tiles in flight, the one that is multiplied included.
  """

  rows: int
  columns: int
  depth: int
  warps: int
  stages: int


def product_tiling(
  num_rows: int, num_experts: int, depth: int, columns: int, dtype: Any
) -> Tiling:
  """Tiles of rows times weights, chosen by arithmetic and not yet measured.

  A row tile is at most 128 rows, and of about the size of a balanced group, so
  that few of a tile's rows are empty. bfloat16 takes 128 columns: two float32
  sums of 128 x 128 (gate and up) are 128 registers a thread with 8 warps, and
  three stages of the three operands 144 KiB of the 227 KiB that Hopper has.
  float32 has no tensor cores to feed and takes smaller tiles. Compiled for an
  H100, none of these kernels spills registers.

  Args:
    num_rows: S.
    num_experts: E.
    depth: width of a row.
    columns: width of a result.
    dtype: of rows and weights.
  """
  edge = _largest_edge(dtype)
  return _tiling(
    _tile_edge(num_rows // num_experts, edge),
    _tile_edge(columns, edge),
    _tile_edge(depth, edge // 2),
    edge,
  )


def gradient_tiling(width: int, columns: int, dtype: Any) -> Tiling:
  """Tiles of a weight's gradient, [width, columns]; the depth is in rows."""
  edge = _largest_edge(dtype)
  return _tiling(
    _tile_edge(width, edge), _tile_edge(columns, edge), edge // 2, edge
  )


def _largest_edge(dtype: Any) -> int:
  return 64 if jnp.dtype(dtype).itemsize > 2 else 128


def _tiling(rows: int, columns: int, depth: int, edge: int) -> Tiling:
  return Tiling(
    rows,
    columns,
    depth,
    warps=8 if rows == edge else 4,
    stages=3 if edge == 128 else 2,
  )


def _tile_edge(size: int, largest: int) -> int:
  """The power of two that holds `size`, within bounds."""
  return min(max(pl.next_power_of_2(max(size, 1)), SMALLEST_TILE), largest)


class RowTiles(NamedTuple):
  """Which rows every row tile has.

  Attributes:
    expert_N: int32; E for rows past the groups, whose results are 0.
    first_N: first row.
    end_N: one past the last; the first row itself where a tile is left over.
  """

  expert_N: jax.Array
  first_N: jax.Array
  end_N: jax.Array


def row_tiles(sizes_E: jax.Array, num_rows: int, tile: int) -> RowTiles:
  """Cuts rows in tiles of at most `tile` rows of one group.

  Args:
    sizes_E: rows of each expert.
    num_rows: S.
    tile: rows of a tile.

  Returns:
    ceil(S / tile) + E tiles, which cover every row once.
  """
  num_experts = sizes_E.shape[0]
  end_E = _ends(sizes_E, num_rows)
  end_G = jnp.append(end_E, num_rows)
  start_G = jnp.append(0, end_E)
  tiles_G = (end_G - start_G + tile - 1) // tile
  tiles_end_G = jnp.cumsum(tiles_G)
  index_N = jnp.arange(pl.cdiv(num_rows, tile) + num_experts, dtype=jnp.int32)
  # Unrolled, it is one GPU kernel and not a loop of many.
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


def _ends(sizes_E, num_rows):
  """One past each expert's last row, never past the rows there are."""
  return jnp.minimum(jnp.cumsum(sizes_E.astype(jnp.int32)), num_rows)


def grouped_matmul(
  rows_SD: jax.Array,
  weights_EDF: jax.Array,
  sizes_E: jax.Array,
  *,
  interpret: bool = False,
  tiling: Tiling | None = None,
) -> jax.Array:
  """Multiplies consecutive groups of rows by one matrix each.

  Args:
    rows_SD: rows sorted by expert, float32 or bfloat16.
    weights_EDF: one matrix per expert, of the rows' dtype.
    sizes_E: integers, rows of each expert, zero allowed; their sum is at most
      S. Rows past it give 0 and get no gradient, whatever is in them.
    interpret: runs the kernel's steps in plain JAX, on any device, slowly.
    tiling: of the product and of the rows' gradient; None chooses.

  Returns:
    [S, F] in the rows' dtype. The gradient of an expert without rows is 0.

  Raises:
    ValueError: shapes or dtypes don't fit.
  """
  _check(rows_SD, (weights_EDF,), sizes_E)
  return _grouped_matmul(interpret, tiling, rows_SD, weights_EDF, sizes_E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _grouped_matmul(interpret, tiling, rows_SD, weights_EDF, sizes_E):
  return _sum_of_products(
    (rows_SD,), (weights_EDF,), sizes_E, False, interpret, tiling
  )


def _matmul_forward(interpret, tiling, rows_SD, weights_EDF, sizes_E):
  out_SF = _grouped_matmul(interpret, tiling, rows_SD, weights_EDF, sizes_E)
  return out_SF, (rows_SD, weights_EDF, sizes_E)


def _matmul_backward(interpret, tiling, saved, dout_SF):
  rows_SD, weights_EDF, sizes_E = saved
  drows_SD = _sum_of_products(
    (dout_SF,), (weights_EDF,), sizes_E, True, interpret, tiling
  )
  dweights_EDF = weight_gradient(
    rows_SD, dout_SF, sizes_E, dtype=weights_EDF.dtype, interpret=interpret
  )
  return drows_SD, dweights_EDF, None


_grouped_matmul.defvjp(_matmul_forward, _matmul_backward)


def grouped_swiglu_hidden(
  rows_SD: jax.Array,
  gate_EDF: jax.Array,
  up_EDF: jax.Array,
  scale_S: jax.Array,
  sizes_E: jax.Array,
  *,
  interpret: bool = False,
  tiling: Tiling | None = None,
) -> jax.Array:
  """silu(rows W1) * (rows W3) * scale, each group with its own matrices.

  One kernel reads the rows once for both products. SwiGLU and the scale are
  computed in float32 and cast once. For the backward pass the two products are
  kept and SwiGLU is computed again.

  Args:
    rows_SD: rows sorted by expert, float32 or bfloat16.
    gate_EDF: matrices of the gated branch (W1), of the rows' dtype.
    up_EDF: matrices of the linear branch (W3).
    scale_S: float32, each row's routing weight.
    sizes_E: integers, rows of each expert; rows past their sum give 0 and get
      no gradient, whatever is in them.
    interpret: runs the kernel's steps in plain JAX, on any device, slowly.
    tiling: of the products; None chooses.

  Returns:
    [S, F] in the rows' dtype.

  Raises:
    ValueError: shapes or dtypes don't fit.

  References:
    DeepSeek-V3, section 3.2.3: SwiGLU's inputs are kept, its output is
    computed again.
  """
  _check(rows_SD, (gate_EDF, up_EDF), sizes_E)
  if scale_S.shape != rows_SD.shape[:1]:
    raise ValueError(f'scale_S {scale_S.shape}, rows_SD {rows_SD.shape}')
  return _hidden(interpret, tiling, rows_SD, gate_EDF, up_EDF, scale_S, sizes_E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _hidden(interpret, tiling, rows_SD, gate_EDF, up_EDF, scale_S, sizes_E):
  return _swiglu_products(
    rows_SD, gate_EDF, up_EDF, scale_S, sizes_E, False, interpret, tiling
  )[0]


def _hidden_forward(
  interpret, tiling, rows_SD, gate_EDF, up_EDF, scale_S, sizes_E
):
  hidden_SF, gate_SF, up_SF = _swiglu_products(
    rows_SD, gate_EDF, up_EDF, scale_S, sizes_E, True, interpret, tiling
  )
  saved = rows_SD, gate_EDF, up_EDF, scale_S, sizes_E, gate_SF, up_SF
  return hidden_SF, saved


def _hidden_backward(interpret, tiling, saved, dhidden_SF):
  rows_SD, gate_EDF, up_EDF, scale_S, sizes_E, gate_SF, up_SF = saved
  swiglu = _swiglu_gradient(gate_SF, up_SF, scale_S, sizes_E, dhidden_SF)
  drows_SD, dgate_EDF, dup_EDF = _into_gradients(
    rows_SD, gate_EDF, up_EDF, sizes_E, swiglu, interpret, tiling
  )
  return drows_SD, dgate_EDF, dup_EDF, swiglu.dscale_S, None


_hidden.defvjp(_hidden_forward, _hidden_backward)


def grouped_swiglu(
  rows_SD: jax.Array,
  gate_EDF: jax.Array,
  up_EDF: jax.Array,
  down_EFD: jax.Array,
  scale_S: jax.Array,
  sizes_E: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """The whole expert: `grouped_swiglu_hidden` times W2.

  Keeps less than the two functions one after the other do: SwiGLU's output is
  computed again in the backward pass.

  Args:
    rows_SD: rows sorted by expert, float32 or bfloat16.
    gate_EDF: matrices of the gated branch (W1), of the rows' dtype.
    up_EDF: matrices of the linear branch (W3).
    down_EFD: output matrices (W2).
    scale_S: float32, each row's routing weight.
    sizes_E: integers, rows of each expert; rows past their sum give 0 and get
      no gradient, whatever is in them.
    interpret: runs the kernels' steps in plain JAX, on any device, slowly.

  Returns:
    [S, D] in the rows' dtype.

  Raises:
    ValueError: shapes or dtypes don't fit.
  """
  _check(rows_SD, (gate_EDF, up_EDF), sizes_E)
  if scale_S.shape != rows_SD.shape[:1]:
    raise ValueError(f'scale_S {scale_S.shape}, rows_SD {rows_SD.shape}')
  return _swiglu(
    interpret, rows_SD, gate_EDF, up_EDF, down_EFD, scale_S, sizes_E
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _swiglu(interpret, rows_SD, gate_EDF, up_EDF, down_EFD, scale_S, sizes_E):
  hidden_SF = _hidden(
    interpret, None, rows_SD, gate_EDF, up_EDF, scale_S, sizes_E
  )
  return _grouped_matmul(interpret, None, hidden_SF, down_EFD, sizes_E)


def _swiglu_forward(
  interpret, rows_SD, gate_EDF, up_EDF, down_EFD, scale_S, sizes_E
):
  hidden_SF, saved = _hidden_forward(
    interpret, None, rows_SD, gate_EDF, up_EDF, scale_S, sizes_E
  )
  out_SD = _grouped_matmul(interpret, None, hidden_SF, down_EFD, sizes_E)
  return out_SD, (saved, down_EFD)


def _swiglu_backward(interpret, saved, dout_SD):
  saved, down_EFD = saved
  rows_SD, gate_EDF, up_EDF, scale_S, sizes_E, gate_SF, up_SF = saved
  dhidden_SF = _sum_of_products(
    (dout_SD,), (down_EFD,), sizes_E, True, interpret, None
  )
  swiglu = _swiglu_gradient(gate_SF, up_SF, scale_S, sizes_E, dhidden_SF)
  ddown_EFD = weight_gradient(
    swiglu.hidden_SF,
    dout_SD,
    sizes_E,
    dtype=down_EFD.dtype,
    interpret=interpret,
  )
  drows_SD, dgate_EDF, dup_EDF = _into_gradients(
    rows_SD, gate_EDF, up_EDF, sizes_E, swiglu, interpret, None
  )
  return drows_SD, dgate_EDF, dup_EDF, ddown_EFD, swiglu.dscale_S, None


_swiglu.defvjp(_swiglu_forward, _swiglu_backward)


class _SwigluGradient(NamedTuple):
  """Gradients of SwiGLU times scale, and its output, computed again."""

  dgate_SF: jax.Array
  dup_SF: jax.Array
  dscale_S: jax.Array
  hidden_SF: jax.Array


def _swiglu_gradient(gate_SF, up_SF, scale_S, sizes_E, dhidden_SF):
  """Row by row, in float32; rows past the groups have no gradient."""
  num_rows, dtype = gate_SF.shape[0], gate_SF.dtype
  inside_S = jnp.arange(num_rows) < _ends(sizes_E, num_rows)[-1]
  dhidden_SF = jnp.where(inside_S[:, None], _float32(dhidden_SF), 0)
  scale_S1 = jnp.where(inside_S, _float32(scale_S), 0)[:, None]
  gate_SF, up_SF = _float32(gate_SF), _float32(up_SF)
  sigmoid_SF = jax.nn.sigmoid(gate_SF)
  silu_SF = gate_SF * sigmoid_SF
  dsilu_SF = sigmoid_SF * (1 + gate_SF * (1 - sigmoid_SF))
  dscale_S = jnp.sum(dhidden_SF * silu_SF * up_SF, axis=-1)
  dhidden_SF *= scale_S1
  return _SwigluGradient(
    dgate_SF=(dhidden_SF * up_SF * dsilu_SF).astype(dtype),
    dup_SF=(dhidden_SF * silu_SF).astype(dtype),
    dscale_S=dscale_S.astype(scale_S.dtype),
    hidden_SF=(silu_SF * up_SF * scale_S1).astype(dtype),
  )


def _into_gradients(
  rows_SD, gate_EDF, up_EDF, sizes_E, swiglu, interpret, tiling
):
  """Gradients of the rows, which both branches read, and of W1 and W3."""
  drows_SD = _sum_of_products(
    (swiglu.dgate_SF, swiglu.dup_SF),
    (gate_EDF, up_EDF),
    sizes_E,
    True,
    interpret,
    tiling,
  )
  dweights = [
    weight_gradient(
      rows_SD, dout_SF, sizes_E, dtype=weights.dtype, interpret=interpret
    )
    for dout_SF, weights in (
      (swiglu.dgate_SF, gate_EDF),
      (swiglu.dup_SF, up_EDF),
    )
  ]
  return drows_SD, *dweights


def weight_gradient(
  rows_SD: jax.Array,
  dout_SF: jax.Array,
  sizes_E: jax.Array,
  *,
  dtype: Any = jnp.float32,
  interpret: bool = False,
  tiling: Tiling | None = None,
) -> jax.Array:
  """Sums of rows times gradients of the results, expert by expert.

  Args:
    rows_SD: rows sorted by expert.
    dout_SF: gradients of their products, of the rows' dtype.
    sizes_E: rows of each expert; rows past their sum are not read.
    dtype: of the result; the sum is float32 and is cast once.
    interpret: runs the kernel's steps in plain JAX, on any device, slowly.
    tiling: None chooses.

  Returns:
    [E, D, F]; 0 for an expert without rows.
  """
  num_rows, width = rows_SD.shape
  num_experts, columns = sizes_E.shape[0], dout_SF.shape[1]
  if not num_rows:
    return jnp.zeros((num_experts, width, columns), dtype)
  tiling = tiling or gradient_tiling(width, columns, rows_SD.dtype)
  end_E = _ends(sizes_E, num_rows)
  # Column tiles first: programs that run together read the same rows.
  grid = (
    pl.cdiv(columns, tiling.columns),
    pl.cdiv(width, tiling.rows),
    num_experts,
  )
  (out_EDF,) = _call(
    functools.partial(_weight_gradient_kernel, tiling=tiling),
    'grouped_weight_gradient',
    [((num_experts, width, columns), dtype)],
    grid,
    tiling,
    interpret,
    jnp.append(0, end_E[:-1]).astype(jnp.int32),
    end_E,
    rows_SD,
    dout_SF.astype(rows_SD.dtype),
  )
  return out_EDF


def _sum_of_products(
  rows: Sequence[jax.Array],
  weights: Sequence[jax.Array],
  sizes_E: jax.Array,
  transposed: bool,
  interpret: bool,
  tiling: Tiling | None,
) -> jax.Array:
  """Sum of rows_i times weights_i; `transposed` contracts the weights' last."""
  num_rows, depth = rows[0].shape
  num_experts = weights[0].shape[0]
  columns = weights[0].shape[1 if transposed else 2]
  dtype = weights[0].dtype
  if not num_rows:
    return jnp.zeros((0, columns), dtype)
  tiling = tiling or product_tiling(
    num_rows, num_experts, depth, columns, dtype
  )
  tiles = row_tiles(sizes_E, num_rows, tiling.rows)
  (out_SF,) = _call(
    functools.partial(_sum_kernel, tiling=tiling, transposed=transposed),
    'grouped_matmul',
    [((num_rows, columns), dtype)],
    (pl.cdiv(columns, tiling.columns), tiles.expert_N.shape[0]),
    tiling,
    interpret,
    *tiles,
    *(x.astype(dtype) for x in rows),
    *weights,
  )
  return out_SF


def _swiglu_products(
  rows_SD, gate_EDF, up_EDF, scale_S, sizes_E, keep, interpret, tiling
):
  """The hidden rows and, to keep, both products."""
  num_rows, depth = rows_SD.shape
  num_experts, _, columns = gate_EDF.shape
  outputs = [((num_rows, columns), rows_SD.dtype)] * (3 if keep else 1)
  if not num_rows:
    return [jnp.zeros(*one) for one in outputs]
  tiling = tiling or product_tiling(
    num_rows, num_experts, depth, columns, rows_SD.dtype
  )
  tiles = row_tiles(sizes_E, num_rows, tiling.rows)
  return _call(
    functools.partial(_swiglu_kernel, tiling=tiling),
    'grouped_swiglu_hidden',
    outputs,
    (pl.cdiv(columns, tiling.columns), tiles.expert_N.shape[0]),
    tiling,
    interpret,
    *tiles,
    rows_SD,
    gate_EDF,
    up_EDF,
    _float32(scale_S),
  )


def _call(kernel, name, outputs, grid, tiling, interpret, *args):
  """Runs a kernel whose programs see all of every array."""
  # Inside shard_map, results differ wherever an argument does.
  kinds = (jax.typeof(x).manual_axis_type for x in args)
  varying = frozenset().union(*(kind.varying for kind in kinds))
  kind = jax.sharding.ManualAxisType(varying=varying)
  return pl.pallas_call(
    kernel,
    out_shape=[
      jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)
      for shape, dtype in outputs
    ],
    grid=grid,
    compiler_params=triton.CompilerParams(
      num_warps=tiling.warps, num_stages=tiling.stages
    ),
    interpret=interpret,
    name=name,
  )(*args)


# --- kernels ------------------------------------------------------------------


def _sum_kernel(
  expert_ref, first_ref, end_ref, *refs, tiling: Tiling, transposed: bool
):
  *operands, out_ref = refs
  half = len(operands) // 2
  rows_refs, weights_refs = operands[:half], operands[half:]
  tile = _Tile.of_program(expert_ref, first_ref, end_ref, weights_refs[0])
  column = pl.program_id(0) * tiling.columns

  def step(i, total):
    at = i * tiling.depth
    for rows_ref, weights_ref in zip(rows_refs, weights_refs, strict=True):
      rows = tile.load(rows_ref, at, tiling)
      weights = _load_weights(
        weights_ref, tile.expert, at, column, tiling, transposed
      )
      total += _dot(rows, weights, 1, 1 if transposed else 0)
    return total

  depth = rows_refs[0].shape[1]
  zero = jnp.zeros((tiling.rows, tiling.columns), jnp.float32)
  total = jax.lax.fori_loop(0, tile.steps(depth, tiling), step, zero)
  tile.store(out_ref, column, total, tiling)


def _swiglu_kernel(
  expert_ref,
  first_ref,
  end_ref,
  rows_ref,
  gate_ref,
  up_ref,
  scale_ref,
  hidden_ref,
  *kept_refs,
  tiling: Tiling,
):
  tile = _Tile.of_program(expert_ref, first_ref, end_ref, gate_ref)
  column = pl.program_id(0) * tiling.columns

  def step(i, totals):
    at = i * tiling.depth
    rows = tile.load(rows_ref, at, tiling)
    return tuple(
      total
      + _dot(rows, _load_weights(ref, tile.expert, at, column, tiling), 1, 0)
      for total, ref in zip(totals, (gate_ref, up_ref), strict=True)
    )

  zero = jnp.zeros((tiling.rows, tiling.columns), jnp.float32)
  steps = tile.steps(rows_ref.shape[1], tiling)
  gate, up = jax.lax.fori_loop(0, steps, step, (zero, zero))
  dtype = hidden_ref.dtype
  if kept_refs:
    for ref, value in zip(kept_refs, (gate, up), strict=True):
      tile.store(ref, column, value, tiling)
  # What is kept is what SwiGLU sees, so that the backward pass agrees.
  gate, up = _float32(gate.astype(dtype)), _float32(up.astype(dtype))
  row = tile.first + jnp.arange(tiling.rows)
  # A row past the groups may hold anything, also as its scale.
  scale = triton.load(
    scale_ref.at[pl.ds(tile.first, tiling.rows)],
    mask=(row < tile.end) & tile.is_expert,
    other=0.0,
  )
  hidden = gate * jax.nn.sigmoid(gate) * up * scale[:, None]
  tile.store(hidden_ref, column, hidden, tiling)


def _weight_gradient_kernel(
  start_ref, end_ref, rows_ref, dout_ref, out_ref, *, tiling: Tiling
):
  column = pl.program_id(0) * tiling.columns
  width = pl.program_id(1) * tiling.rows
  expert = pl.program_id(2)
  start, end = start_ref[expert], end_ref[expert]

  def step(i, total):
    first = start + i * tiling.depth
    rows = _load(
      rows_ref,
      (),
      (first, tiling.depth, end),
      (width, tiling.rows, _limit(rows_ref.shape[1], tiling.rows)),
    )
    dout = _load(
      dout_ref,
      (),
      (first, tiling.depth, end),
      (column, tiling.columns, _limit(dout_ref.shape[1], tiling.columns)),
    )
    return total + _dot(rows, dout, 0, 0)

  steps = (end - start + tiling.depth - 1) // tiling.depth
  zero = jnp.zeros((tiling.rows, tiling.columns), jnp.float32)
  total = jax.lax.fori_loop(0, steps, step, zero)
  _, num_rows, num_columns = out_ref.shape
  _store(
    out_ref,
    (expert,),
    (width, tiling.rows, _limit(num_rows, tiling.rows)),
    (column, tiling.columns, _limit(num_columns, tiling.columns)),
    total,
  )


class _Tile(NamedTuple):
  """The row tile of this program, axis 1 of its grid."""

  expert: Any
  first: Any
  end: Any
  is_expert: Any

  @classmethod
  def of_program(cls, expert_ref, first_ref, end_ref, weights_ref) -> '_Tile':
    index = pl.program_id(1)
    expert = expert_ref[index]
    return cls(
      expert, first_ref[index], end_ref[index], expert < weights_ref.shape[0]
    )

  def steps(self, depth: int, tiling: Tiling):
    """Parts of the contracted axis; none where nothing is to be multiplied."""
    busy = self.is_expert & (self.first < self.end)
    return busy.astype(jnp.int32) * pl.cdiv(depth, tiling.depth)

  def load(self, ref, at, tiling: Tiling):
    return _load(
      ref,
      (),
      (self.first, tiling.rows, self.end),
      (at, tiling.depth, _limit(ref.shape[1], tiling.depth)),
    )

  def store(self, ref, column, value, tiling: Tiling) -> None:
    _store(
      ref,
      (),
      (self.first, tiling.rows, self.end),
      (column, tiling.columns, _limit(ref.shape[1], tiling.columns)),
      value,
    )


def _load_weights(ref, expert, at, column, tiling, transposed=False):
  """[depth, columns] of an expert's matrix, or [columns, depth]."""
  depth, columns = ref.shape[1:] if not transposed else ref.shape[:0:-1]
  parts = (
    (at, tiling.depth, _limit(depth, tiling.depth)),
    (column, tiling.columns, _limit(columns, tiling.columns)),
  )
  return _load(ref, (expert,), *(parts[::-1] if transposed else parts))


def _limit(size: int, tile: int) -> int | None:
  """Where the axis ends, if a tile can reach past it."""
  return size if size % tile else None


def _load(ref, lead, rows, columns):
  """A tile; its entries at or past a limit are 0."""
  window, mask = _window(ref, lead, rows, columns)
  if mask is None:
    return triton.load(window)
  return triton.load(window, mask=mask, other=0.0)


def _store(ref, lead, rows, columns, value) -> None:
  window, mask = _window(ref, lead, rows, columns)
  triton.store(window, value.astype(ref.dtype), mask=mask)


def _window(ref, lead, *axes):
  """(reference to a tile, which of its entries there are: None means all).

  Args:
    ref: an array.
    lead: indices of its leading axes.
    *axes: of both last axes, (start, size, limit or None).
  """
  mask = None
  for axis, (start, size, limit) in enumerate(axes):
    if limit is not None:
      shape = (size, 1) if axis == 0 else (1, size)
      inside = ((start + jnp.arange(size)) < limit).reshape(shape)
      mask = inside if mask is None else mask & inside
  if mask is not None:
    mask = jnp.broadcast_to(mask, tuple(size for _, size, _ in axes))
  slices = tuple(pl.ds(start, size) for start, size, _ in axes)
  return ref.at[(*lead, *slices)], mask


def _dot(a, b, a_axis: int, b_axis: int):
  """Contracts an axis of each; the sum is float32."""
  return jax.lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,  # float32 would become TF32.
    preferred_element_type=jnp.float32,
  )


def _check(rows_SD, weights, sizes_E) -> None:
  dtypes = {str(x.dtype) for x in (rows_SD, *weights)}
  if len(dtypes) > 1 or not dtypes < {'float32', 'bfloat16'}:
    raise ValueError(
      f'rows and weights are {", ".join(sorted(dtypes))}; the kernels take all '
      'float32 or all bfloat16'
    )
  for w in weights:
    expected = (sizes_E.shape[0], rows_SD.shape[1], weights[0].shape[-1])
    if w.shape != expected:
      raise ValueError(
        f'weights {w.shape} do not fit rows_SD {rows_SD.shape} and '
        f'sizes_E {sizes_E.shape}'
      )


def _float32(x):
  return x.astype(jnp.float32)
