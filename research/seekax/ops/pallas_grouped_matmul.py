"""Grouped products on GPUs: rows sorted by expert, any group sizes, gradients.

The kernels are in `ops/pallas_grouped_kernels.py`, their tile sizes in
`ops/pallas_tiles.py`. Rows past the last group give 0.

Letters: S rows, E experts, D width of a row, F width of a result.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seekax.ops.pallas_grouped_kernels import (
  sum_of_products,
  swiglu_products,
  weight_gradient,
)
from seekax.ops.pallas_tiles import group_ends, Tiling


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
    sizes_E: integers, number of rows of each expert, may be 0; their sum is at
      most S. Rows past it give 0 and get no gradient, even if they hold NaN.
    interpret: runs the kernel's steps in plain JAX, on any device, slowly.
    tiling: how this product and the rows' gradient are cut; None chooses.

  Returns:
    [S, F] in the rows' dtype. The gradient of an expert without rows is 0.

  Raises:
    ValueError: shapes or dtypes don't fit.
  """
  _check(rows_SD, (weights_EDF,), sizes_E)
  return _grouped_matmul(interpret, tiling, rows_SD, weights_EDF, sizes_E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _grouped_matmul(interpret, tiling, rows_SD, weights_EDF, sizes_E):
  return sum_of_products(
    (rows_SD,), (weights_EDF,), sizes_E, False, interpret, tiling
  )


def _matmul_forward(interpret, tiling, rows_SD, weights_EDF, sizes_E):
  out_SF = _grouped_matmul(interpret, tiling, rows_SD, weights_EDF, sizes_E)
  return out_SF, (rows_SD, weights_EDF, sizes_E)


def _matmul_backward(interpret, tiling, saved, dout_SF):
  rows_SD, weights_EDF, sizes_E = saved
  drows_SD = sum_of_products(
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
  computed in float32 and cast once. The backward pass keeps the two products
  and computes SwiGLU again.

  Args:
    rows_SD: rows sorted by expert, float32 or bfloat16.
    gate_EDF: matrices of the gated branch (W1), of the rows' dtype.
    up_EDF: matrices of the linear branch (W3).
    scale_S: float32, each row's routing weight.
    sizes_E: integers, number of rows of each expert; rows past their sum give 0
      and get no gradient, even if they hold NaN.
    interpret: runs the kernel's steps in plain JAX, on any device, slowly.
    tiling: how the products are cut; None chooses.

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
  return swiglu_products(
    rows_SD, gate_EDF, up_EDF, scale_S, sizes_E, False, interpret, tiling
  )[0]


def _hidden_forward(
  interpret, tiling, rows_SD, gate_EDF, up_EDF, scale_S, sizes_E
):
  hidden_SF, gate_SF, up_SF = swiglu_products(
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
  """A whole expert: `grouped_swiglu_hidden` times W2.

  It keeps less memory than the two functions in a row: SwiGLU's output is
  computed again in the backward pass.

  Args:
    rows_SD: rows sorted by expert, float32 or bfloat16.
    gate_EDF: matrices of the gated branch (W1), of the rows' dtype.
    up_EDF: matrices of the linear branch (W3).
    down_EFD: output matrices (W2).
    scale_S: float32, each row's routing weight.
    sizes_E: integers, number of rows of each expert; rows past their sum give 0
      and get no gradient, even if they hold NaN.
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
  dhidden_SF = sum_of_products(
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
  """Gradients of SwiGLU times scale, and its recomputed output."""

  dgate_SF: jax.Array
  dup_SF: jax.Array
  dscale_S: jax.Array
  hidden_SF: jax.Array


def _swiglu_gradient(gate_SF, up_SF, scale_S, sizes_E, dhidden_SF):
  """Works row by row, in float32; rows past the groups have no gradient."""
  num_rows, dtype = gate_SF.shape[0], gate_SF.dtype
  inside_S = jnp.arange(num_rows) < group_ends(sizes_E, num_rows)[-1]
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
  drows_SD = sum_of_products(
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
