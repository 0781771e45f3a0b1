"""Grouped products and attention by tokamax, where it is installed.

tokamax is an optional dependency: it needs Python 3.12 and jax 0.11.1, and is
imported on first use. What its kernels can do was read in the source of version
0.0.17; none of them was run here on a GPU.

* Its Mosaic kernels have a gradient of the weights only on Hopper (compute
  capability 9.0). For the gradient of the rows they copy all weights,
  transposed.
* Its Triton kernels also need the packages triton and jax-triton.
* Where the sizes don't add up to the number of rows, the values it leaves in
  the other rows are undocumented, so they are masked here.

Letters: S rows, E experts, D width of a row, F width of a result, B batch,
L positions, H query heads, N key/value heads, K query/key width, U value width.
"""

import jax
import jax.numpy as jnp

from seekax.ops.needs import (
  AMPERE,
  attached_problem,
  BLACKWELL,
  dtype_problem,
  gpu_problem,
  HOPPER,
  Need,
  whole_problem,
)

OLDEST = (0, 0, 17)
# On an H200 the weight gradient of its Mosaic kernel was off by 3 % of its
# norm, that of jax.lax.ragged_dot by 0.2 %, which is bfloat16 rounding.
_INEXACT = (0, 0, 17)


def grouped_matmul(
  rows_SD: jax.Array,
  weights_EDF: jax.Array,
  sizes_E: jax.Array,
  implementation: str,
  *,
  complete: bool = False,
) -> jax.Array:
  """Multiplies consecutive groups of rows by one matrix each.

  Args:
    rows_SD: rows sorted by expert.
    weights_EDF: one matrix per expert, of the rows' dtype.
    sizes_E: number of rows of each expert; rows past their sum give 0 and get
      no gradient.
    implementation: mosaic, triton, or xla, which is slow and runs anywhere.
    complete: the sizes are known to add up to S, so nothing is masked, which
      saves reading and writing the rows and results once more.

  Returns:
    [S, F] in the rows' dtype.

  Raises:
    ImportError: tokamax is not installed.
    NotImplementedError: tokamax's kernel can't do this on this device.
  """
  import tokamax  # pyrefly: ignore[missing-import]: only users of it have it.

  def product(rows_SD):
    return tokamax.ragged_dot(
      rows_SD,
      weights_EDF,
      sizes_E.astype(jnp.int32),
      preferred_element_type=rows_SD.dtype,
      implementation=implementation,
    )

  if complete:
    return product(rows_SD)
  inside_S1 = (jnp.arange(rows_SD.shape[0]) < jnp.sum(sizes_E))[:, None]
  out_SF = product(jnp.where(inside_S1, rows_SD, 0))
  return jnp.where(inside_S1, out_SF, 0)


def causal_attention(
  q_BLHK: jax.Array,
  k_BLNK: jax.Array,
  v_BLNU: jax.Array,
  scale: float,
  segments_BL: jax.Array | None = None,
  implementation: str = 'mosaic',
) -> jax.Array:
  """Softmax attention over the positions at or before each query.

  Args:
    q_BLHK: queries.
    k_BLNK: keys; N divides H.
    v_BLNU: values, of any width.
    scale: factor on the logits.
    segments_BL: document numbers; they become a mask of B * L * L bytes.
    implementation: mosaic, triton, or xla_chunked, which runs anywhere.

  Returns:
    [B, L, H, U] in the values' dtype.

  Raises:
    ImportError: tokamax is not installed.
    NotImplementedError: tokamax's kernel can't do this on this device.
  """
  import tokamax  # pyrefly: ignore[missing-import]: only users of it have it.

  mask_B1LL = None
  if segments_BL is not None:
    mask_B1LL = segments_BL[:, None, :, None] == segments_BL[:, None, None, :]
  return tokamax.dot_product_attention(
    q_BLHK,
    k_BLNK,
    v_BLNU,
    mask=mask_B1LL,
    scale=scale,
    is_causal=True,
    implementation=implementation,
  )


def _version_problem(need: Need) -> str:
  oldest = '.'.join(map(str, OLDEST))
  install = f"; pip install 'tokamax>={oldest}', on Python 3.12 or later"
  if problem := attached_problem(need):
    return problem
  if not need.device.tokamax:
    return f'tokamax is not installed{install}'
  if need.device.tokamax < OLDEST:
    found = '.'.join(map(str, need.device.tokamax))
    return f'tokamax {found} is older than {oldest}{install}'
  return ''


def mosaic_problem(need: Need) -> str:
  """Why its Mosaic kernels can't do this, or ''."""
  problem = gpu_problem(need, HOPPER)
  if not problem and need.device.compute_capability >= BLACKWELL:
    problem = (
      f'has no gradient of the weights beyond Hopper, this is {need.device}; '
      'take pallas or triton'
    )
  problem = problem or _version_problem(need) or dtype_problem(need, 'bfloat16')
  if not problem and need.device.tokamax <= _INEXACT:
    found = '.'.join(map(str, need.device.tokamax))
    problem = (
      f'in tokamax {found} has a gradient of the weights that is off by 3 % of '
      'its norm; take pallas'
    )
  return problem


def triton_problem(need: Need) -> str:
  """Why its Triton kernels can't do this, or ''."""
  problem = gpu_problem(need, AMPERE) or _version_problem(need)
  if not problem and not need.device.tokamax_triton:
    problem = (
      'triton or jax-triton is not installed; pip install triton jax-triton'
    )
  return problem or dtype_problem(need, 'bfloat16')


def attention_problem(need: Need) -> str:
  """Why its attention can't do this, or ''."""
  # Forward kernels reach back to Ampere, backward kernels to Hopper.
  return (
    gpu_problem(need, HOPPER)
    or _version_problem(need)
    or dtype_problem(need, 'bfloat16', 'float16')
    or whole_problem(need)
  )
