"""Rows grouped by expert, each group times its expert's own matrices.

Letters: T tokens, A experts per token, S slots (S = T*A), E experts, C rows
of one expert in one block, D input width, F hidden or output width.

Backends, all exact and dropless for every pattern of group sizes:

* `blocked` (default): the first C rows of every expert are one batched product
  [E, C, D] x [E, D, F]; when the loads are near balance that is all. What is
  left over follows in blocks of C/8 rows, E/2 blocks at a time, with their
  experts' weights gathered, until nothing is left. The gradient goes the same
  way; of the first product the two up-projections are kept for it. With fewer
  slots than experts (decoding) the chosen experts' weights are gathered
  instead, so that the others are never read.
* `ragged`: `jax.lax.ragged_dot`, which lowers to every row times every expert
  on CPU.
* `dense`: every row times every expert, plainly. A reference for tests.
"""

import functools

import jax
import jax.numpy as jnp

from seekax.ops.blocks import (
  blocked,
  BlockFunction,
  each_slot,
  sort_slots,
)
from seekax.ops.linear import swiglu_backward, swiglu_forward
from seekax.ops.quantize import BlockScaled, expand

_MATRICES = ('gate', 'up', 'down')


def grouped_matmul(
  rows_SD: jax.Array,
  weights_EDF: jax.Array,
  sizes_E: jax.Array,
  backend: str = 'blocked',
) -> jax.Array:
  """Multiplies consecutive groups of rows by one matrix each.

  Args:
    rows_SD: rows sorted by expert.
    weights_EDF: one matrix per expert.
    sizes_E: rows of each expert, zero allowed. Rows past their sum give 0.
    backend: blocked, ragged or dense.

  Returns:
    [S, F] in the rows' dtype.
  """
  if backend == 'ragged':
    return jax.lax.ragged_dot(rows_SD, weights_EDF, sizes_E)
  expert_S = jnp.searchsorted(
    jnp.cumsum(sizes_E), jnp.arange(rows_SD.shape[0]), side='right'
  )
  if backend == 'dense':
    all_SEF = jnp.einsum('SD,EDF->SEF', rows_SD, weights_EDF)
    own_SE = jax.nn.one_hot(expert_S, sizes_E.shape[0], dtype=rows_SD.dtype)
    return jnp.einsum('SEF,SE->SF', all_SEF, own_SE)
  ones_S1 = jnp.ones((rows_SD.shape[0], 1), rows_SD.dtype)
  out_SF = blocked(
    _LINEAR, rows_SD, ones_S1, expert_S[:, None], {'w': weights_EDF}
  )
  return out_SF.astype(rows_SD.dtype)


def grouped_swiglu(
  x_TD: jax.Array,
  gates_TA: jax.Array,
  experts_TA: jax.Array,
  gate_EDF: jax.Array | BlockScaled,
  up_EDF: jax.Array | BlockScaled,
  down_EFD: jax.Array | BlockScaled,
  backend: str = 'blocked',
) -> jax.Array:
  """Sum over each token's experts of gate * SwiGLU(token).

  Args:
    x_TD: tokens.
    gates_TA: float32 routing weight of each choice.
    experts_TA: chosen experts; with `blocked`, id E is nobody and gives 0.
    gate_EDF: matrices of the gated branch (W1). FP8 is expanded when it is
      used; in decoding, that of the chosen experts alone.
    up_EDF: matrices of the linear branch (W3).
    down_EFD: output matrices (W2).
    backend: blocked, ragged or dense.

  Returns:
    float32 [T, D]: the experts' outputs, in x's dtype, are added up in float32.
  """
  weights = dict(zip(_MATRICES, (gate_EDF, up_EDF, down_EFD), strict=True))
  if backend == 'blocked' and experts_TA.size <= gate_EDF.shape[0]:
    return each_slot(_SWIGLU, x_TD, gates_TA, experts_TA, weights)
  if backend == 'blocked':
    return blocked(_SWIGLU, x_TD, gates_TA, experts_TA, weights)
  slots = sort_slots(experts_TA, gate_EDF.shape[0])
  gate_EDF, up_EDF, down_EFD = map(expand, (gate_EDF, up_EDF, down_EFD))
  product = functools.partial(
    grouped_matmul, sizes_E=slots.sizes_E, backend=backend
  )
  rows_SD = x_TD[slots.order_S // experts_TA.shape[1]]
  hidden_SF = jax.nn.silu(_float32(product(rows_SD, gate_EDF)))
  hidden_SF *= _float32(product(rows_SD, up_EDF))
  scale_S = gates_TA.reshape(-1)[slots.order_S]
  hidden_SF = (hidden_SF * scale_S[:, None]).astype(x_TD.dtype)
  out_SD = product(hidden_SF, down_EFD)
  place_TA = slots.starts_E[experts_TA] + slots.rank_TA
  return out_SD[place_TA].sum(axis=1, dtype=jnp.float32)


def _linear(x_ECD, scale_EC, weights):
  del scale_EC
  return jnp.einsum('ECD,EDF->ECF', x_ECD, weights['w']), ()


def _linear_backward(x_ECD, scale_EC, weights, kept, dy_ECF):
  del kept
  dx_ECD = jnp.einsum('ECF,EDF->ECD', dy_ECF, weights['w'])
  dw_EDF = _float32_einsum('ECD,ECF->EDF', x_ECD, dy_ECF)
  return dx_ECD, jnp.zeros_like(scale_EC), {'w': dw_EDF}


def _swiglu(x_ECD, scale_EC, weights):
  return swiglu_forward(x_ECD, scale_EC, *(weights[name] for name in _MATRICES))


def _swiglu_backward(x_ECD, scale_EC, weights, kept, dy_ECD):
  matrices = (weights[name] for name in _MATRICES)
  dx_ECD, dscale_EC, *dweights = swiglu_backward(
    x_ECD, scale_EC, *matrices, kept, dy_ECD
  )
  return dx_ECD, dscale_EC, dict(zip(_MATRICES, dweights, strict=True))


_LINEAR = BlockFunction(_linear, _linear_backward)
_SWIGLU = BlockFunction(_swiglu, _swiglu_backward)


def _float32_einsum(letters, *operands):
  return jnp.einsum(letters, *operands, preferred_element_type=jnp.float32)


def _float32(x):
  return x.astype(jnp.float32)
