"""GPU kernels of grouped products: sums of products, SwiGLU, weight gradients.

They are written in Pallas and compiled by Triton. Rows of no expert become
zeros. In the kernel for the weights' gradient each program loops over the rows
of one expert.

All products add up in float32; float32 inputs are multiplied in full float32,
not in TF32. Offsets become 64 bits wide where an array is larger than 4 GiB, as
the expert weights of the 671B model are; Pallas does that by itself. jax 0.12
warns that a later version will drop Pallas for Triton; setup.py stops below.

Letters: S rows, E experts, D width of a row, F width of a result.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from seekax.ops.pallas_tiles import (
  gradient_tiling,
  group_ends,
  product_tiling,
  row_tiles,
  Tiling,
)


def sum_of_products(
  rows: Sequence[jax.Array],
  weights: Sequence[jax.Array],
  sizes_E: jax.Array,
  transposed: bool,
  interpret: bool,
  tiling: Tiling | None,
) -> jax.Array:
  """Sum over i of rows_i times weights_i, each group with its own matrices.

  Args:
    rows: [S, D] each, sorted by expert.
    weights: equally many [E, D, F]; [E, F, D] if transposed.
    sizes_E: number of rows of each expert; rows past their sum give 0.
    transposed: contracts the weights' last axis.
    interpret: runs the kernel's steps in plain JAX, on any device, slowly.
    tiling: how the product is cut; None chooses.

  Returns:
    [S, F] in the weights' dtype.
  """
  num_rows, depth = rows[0].shape
  num_experts = weights[0].shape[0]
  columns = weights[0].shape[1 if transposed else 2]
  dtype = weights[0].dtype
  if not num_rows:
    return jnp.zeros((0, columns), dtype)
  tiling = tiling or product_tiling(
    num_rows, num_experts, depth, columns, dtype, transposed
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


def swiglu_products(
  rows_SD, gate_EDF, up_EDF, scale_S, sizes_E, keep, interpret, tiling
):
  """silu(rows W1) * (rows W3) * scale, and with keep both products, [S, F]."""
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


def weight_gradient(
  rows_SD: jax.Array,
  dout_SF: jax.Array,
  sizes_E: jax.Array,
  *,
  dtype: jax.typing.DTypeLike = jnp.float32,
  interpret: bool = False,
  tiling: Tiling | None = None,
) -> jax.Array:
  """For each expert, the product of its transposed rows and gradients.

  Args:
    rows_SD: rows sorted by expert.
    dout_SF: gradients of the rows' products, in the rows' dtype.
    sizes_E: number of rows of each expert; rows past their sum aren't read.
    dtype: dtype of the result; the sum is float32 and is cast once.
    interpret: runs the kernel's steps in plain JAX, on any device, slowly.
    tiling: how the product is cut; None chooses.

  Returns:
    [E, D, F]; 0 for an expert without rows.
  """
  num_rows, width = rows_SD.shape
  num_experts, columns = sizes_E.shape[0], dout_SF.shape[1]
  if not num_rows:
    return jnp.zeros((num_experts, width, columns), dtype)
  tiling = tiling or gradient_tiling(width, columns, rows_SD.dtype)
  end_E = group_ends(sizes_E, num_rows)
  # Column tiles vary first: programs that run together read the same rows.
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


def _call(kernel, name, outputs, grid, tiling, interpret, *args):
  """Runs a kernel whose programs each see the whole of every array."""
  # Inside shard_map, results vary over an axis if any argument does.
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
  # SwiGLU uses the cast values that are kept, so that the backward pass agrees.
  gate, up = _float32(gate.astype(dtype)), _float32(up.astype(dtype))
  row = tile.first + jnp.arange(tiling.rows)
  # Rows past the groups, and their scales, may hold anything.
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
  """This program's row tile; axis 1 of the grid counts row tiles."""

  expert: jax.Array
  first: jax.Array
  end: jax.Array
  is_expert: jax.Array

  @classmethod
  def of_program(cls, expert_ref, first_ref, end_ref, weights_ref) -> '_Tile':
    index = pl.program_id(1)
    expert = expert_ref[index]
    return cls(
      expert, first_ref[index], end_ref[index], expert < weights_ref.shape[0]
    )

  def steps(self, depth: int, tiling: Tiling):
    """Number of steps over the contracted axis; 0 for an empty tile."""
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
  """The end of the axis, if a tile can reach past it."""
  return size if size % tile else None


def _load(ref, lead, rows, columns):
  """Loads a tile; entries at or past a limit are 0."""
  window, mask = _window(ref, lead, rows, columns)
  if mask is None:
    return triton.load(window)
  return triton.load(window, mask=mask, other=0.0)


def _store(ref, lead, rows, columns, value) -> None:
  window, mask = _window(ref, lead, rows, columns)
  triton.store(window, value.astype(ref.dtype), mask=mask)


def _window(ref, lead, *axes):
  """Returns (reference to a tile, mask of its valid entries; None means all).

  Args:
    ref: an array.
    lead: indices of its leading axes.
    *axes: (start, size, limit or None) of each of the last two axes.
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
  """Contracts one axis of each operand; the sum is float32."""
  return jax.lax.dot_general(
    a,
    b,
    (((a_axis,), (b_axis,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,  # float32 would become TF32.
    preferred_element_type=jnp.float32,
  )


def _float32(x):
  return x.astype(jnp.float32)
