"""Multiplies rows grouped by expert with their expert's matrices.

Letters: T tokens, A experts per token, S slots (S = T*A), E experts, C rows
of one expert in one block, D input width, F hidden or output width.

All backends are exact and dropless for every pattern of group sizes.
`ops/backends.py` chooses one:

* `blocked` (portable): the first C rows of every expert are one batched product
  [E, C, D] x [E, D, F]; when the loads are near balance that is all. The
  leftover rows follow in blocks of C/2 rows, E/8 blocks at a time, with their
  experts' weights gathered. The gradient takes the same steps; it reuses the
  two up-projections of the first product, which are kept.
* `pallas`: our kernels for NVIDIA GPUs, with gate, up, SwiGLU and the routing
  weight fused (`ops/pallas_grouped_matmul.py`).
* `mosaic`, `triton`: tokamax's kernels (`ops/tokamax_backends.py`).
* `ragged`: `jax.lax.ragged_dot`, which on CPU multiplies every row by every
  expert.
* `dense`: every row times every expert, written plainly; a reference for tests.

With at most half as many slots as experts (decoding) `blocked` gathers the
chosen experts' weights instead, so that the others are never read; with FP8
weights the kernels do so too.
"""

import functools

import jax
import jax.numpy as jnp

from seekax.ops import backends, devices
from seekax.ops import pallas_grouped_matmul as pallas
from seekax.ops import tokamax_backends as tokamax
from seekax.ops.blocks import (
  blocked,
  BlockFunction,
  each_slot,
  sort_slots,
)
from seekax.ops.linear import (
  PLAIN_SWIGLU,
  swiglu_backward,
  swiglu_forward,
  SwigluProducts,
  transposed_in_memory,
)
from seekax.ops.quantize import BlockScaled, expand

_MATRICES = ('gate', 'up', 'down')


def grouped_matmul(
  rows_SD: jax.Array,
  weights_EDF: jax.Array,
  sizes_E: jax.Array,
  backend: str = 'blocked',
  interpret: bool = False,
) -> jax.Array:
  """Multiplies consecutive groups of rows by one matrix each.

  Args:
    rows_SD: rows sorted by expert.
    weights_EDF: one matrix per expert.
    sizes_E: number of rows of each expert, may be 0; rows past their sum give
      0.
    backend: name of a backend.
    interpret: runs the steps of `pallas` in plain JAX, on any device.

  Returns:
    [S, F] in the rows' dtype.
  """
  if backend == 'pallas':
    return pallas.grouped_matmul(
      rows_SD, weights_EDF, sizes_E, interpret=interpret
    )
  if backend in ('mosaic', 'triton'):
    return tokamax.grouped_matmul(rows_SD, weights_EDF, sizes_E, backend)
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
  backend: str = backends.AUTO,
  interpret: bool = False,
  products: SwigluProducts = PLAIN_SWIGLU,
) -> jax.Array:
  """Sum over each token's experts of gate * SwiGLU(token).

  Args:
    x_TD: tokens.
    gates_TA: float32 routing weight of each choice.
    experts_TA: chosen experts; id E means none and gives 0.
    gate_EDF: matrices of the gated branch (W1). FP8 is expanded when it is
      used; in decoding, only the chosen experts' matrices are.
    up_EDF: matrices of the linear branch (W3).
    down_EFD: output matrices (W2).
    backend: name of a backend, or auto.
    interpret: runs the steps of `pallas` in plain JAX, on any device.
    products: how the three matrices are multiplied; only `blocked` takes others
      than plain products. FP8 tiles never span two of its blocks.

  Returns:
    float32 [T, D]: the experts' outputs, in x's dtype, added in float32.

  Raises:
    ConfigError: the backend can't run here.
  """
  choice = backends.choose_grouped_matmul(
    backend,
    devices.present(),
    x_TD.dtype,
    interpret=interpret,
    plain=products == PLAIN_SWIGLU,
  )
  weights = dict(zip(_MATRICES, (gate_EDF, up_EDF, down_EFD), strict=True))
  swiglu = _swiglu_function(products)
  # FP8 products are for training: even with few slots they need the gradient,
  # which only `blocked` has.
  few = 2 * experts_TA.size <= gate_EDF.shape[0] and products == PLAIN_SWIGLU
  references = choice.name in ('ragged', 'dense')
  fp8 = isinstance(gate_EDF, BlockScaled)
  if few and not references and (choice.name == 'blocked' or fp8):
    return each_slot(swiglu, x_TD, gates_TA, experts_TA, weights)
  if choice.name == 'blocked':
    return blocked(swiglu, x_TD, gates_TA, experts_TA, weights)
  slots = sort_slots(experts_TA, gate_EDF.shape[0])
  place_TA = jnp.take(slots.starts_E, experts_TA, mode='clip') + slots.rank_TA
  place_TA = jnp.where(experts_TA < gate_EDF.shape[0], place_TA, place_TA.size)
  rows_SD = _dispatch(x_TD, slots.order_S, place_TA)
  out_SD = _sorted_swiglu(
    rows_SD,
    gates_TA.reshape(-1)[slots.order_S],
    slots.sizes_E,
    [expand(weight) for weight in weights.values()],
    choice.name,
    interpret,
  )
  return _combine(out_SD, slots.order_S, place_TA)


def _sorted_swiglu(rows_SD, scale_S, sizes_E, weights, backend, interpret):
  """scale * SwiGLU of rows sorted by expert: [S, D] in the rows' dtype."""
  gate_EDF, up_EDF, down_EFD = weights
  if backend == 'pallas':
    return pallas.grouped_swiglu(
      rows_SD,
      gate_EDF,
      up_EDF,
      down_EFD,
      scale_S,
      sizes_E,
      interpret=interpret,
    )
  product = functools.partial(grouped_matmul, sizes_E=sizes_E, backend=backend)
  hidden_SF = jax.nn.silu(_float32(product(rows_SD, gate_EDF)))
  hidden_SF *= _float32(product(rows_SD, up_EDF))
  hidden_SF = (hidden_SF * scale_S[:, None]).astype(rows_SD.dtype)
  return product(hidden_SF, down_EFD)


@jax.custom_vjp
def _dispatch(x_TD, order_S, place_TA):
  """Each slot's token, [S, D]. Its gradient sums A rows per token.

  The gradient that JAX derives would be a scatter-add, which has no fixed order
  on a GPU.
  """
  return x_TD[order_S // place_TA.shape[1]]


def _dispatch_forward(x_TD, order_S, place_TA):
  return _dispatch(x_TD, order_S, place_TA), (order_S, place_TA)


def _dispatch_backward(saved, drows_SD):
  order_S, place_TA = saved
  dx_TD = _combine(drows_SD, order_S, place_TA)
  return dx_TD.astype(drows_SD.dtype), None, None


@jax.custom_vjp
def _combine(out_SD, order_S, place_TA):
  """float32 [T, D], the sum of each token's rows; its gradient is a gather."""
  del order_S
  own_TAD = jnp.take(out_SD, place_TA, axis=0, mode='fill', fill_value=0)
  return own_TAD.sum(axis=1, dtype=jnp.float32)


def _combine_forward(out_SD, order_S, place_TA):
  like = jnp.zeros((), out_SD.dtype)
  return _combine(out_SD, order_S, place_TA), (order_S, place_TA, like)


def _combine_backward(saved, dy_TD):
  order_S, place_TA, like = saved
  dout_SD = _dispatch(dy_TD.astype(like.dtype), order_S, place_TA)
  return dout_SD, None, None


_dispatch.defvjp(_dispatch_forward, _dispatch_backward)
_combine.defvjp(_combine_forward, _combine_backward)


def _linear(x_ECD, scale_EC, weights):
  del scale_EC
  return jnp.einsum('ECD,EDF->ECF', x_ECD, weights['w']), ()


def _linear_backward(x_ECD, scale_EC, weights, kept, dy_ECF):
  del kept
  w_EDF = transposed_in_memory(weights['w'])
  dx_ECD = jnp.einsum('ECF,EDF->ECD', dy_ECF, w_EDF)
  dw_EDF = _float32_einsum('ECD,ECF->EDF', transposed_in_memory(x_ECD), dy_ECF)
  return dx_ECD, jnp.zeros_like(scale_EC), {'w': dw_EDF}


@functools.cache
def _swiglu_function(products: SwigluProducts) -> BlockFunction:
  """scale * SwiGLU with these products."""

  def forward(x_ECD, scale_EC, weights):
    matrices = (weights[name] for name in _MATRICES)
    return swiglu_forward(products, x_ECD, scale_EC, *matrices)

  def backward(x_ECD, scale_EC, weights, kept, dy_ECD):
    gate, up, down = (weights[name] for name in _MATRICES)
    dx_ECD, dscale_EC, *dweights = swiglu_backward(
      products, x_ECD, scale_EC, gate, up, down, kept, dy_ECD
    )
    return dx_ECD, dscale_EC, dict(zip(_MATRICES, dweights, strict=True))

  return BlockFunction(forward, backward)


_LINEAR = BlockFunction(_linear, _linear_backward)


def _float32_einsum(letters, *operands):
  return jnp.einsum(letters, *operands, preferred_element_type=jnp.float32)


def _float32(x):
  return x.astype(jnp.float32)
