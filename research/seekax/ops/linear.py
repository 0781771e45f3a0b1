"""Products with a weight, and the SwiGLU of three of them.

Letters: T rows, D input width, F hidden or output width. A leading axis E, one
matrix per expert, is allowed before T and before D.
"""

import jax
import jax.numpy as jnp

from seekax.ops.quantize import BlockScaled, expand
from seekax.ops.reductions import reduce_rows
from seekax.ops.rematerialisation import keep


def linear(x: jax.Array, weight: jax.Array) -> jax.Array:
  """Contracts the last axis of x with the first of a weight.

  Args:
    x: [..., D].
    weight: [D, ...].

  Returns:
    [..., ...] in x's dtype.
  """
  rows_TD = x.reshape(-1, x.shape[-1])
  y_TF = _linear(rows_TD, weight.reshape(x.shape[-1], -1))
  return y_TF.reshape(*x.shape[:-1], *weight.shape[1:])


def contract(x: jax.Array, weight: jax.Array, axes: int) -> jax.Array:
  """Contracts the last `axes` axes of x with as many first ones of a weight."""
  x = x.reshape(*x.shape[:-axes], -1)
  return linear(x, weight.reshape(-1, *weight.shape[axes:]))


@jax.custom_vjp
def _linear(x_TD, w_DF):
  return jnp.einsum('TD,DF->TF', x_TD, w_DF)


def _linear_forward(x_TD, w_DF):
  return _linear(x_TD, w_DF), (x_TD, w_DF)


def _linear_backward(saved, dy_TF):
  """The usual gradients, in the order that needs no transposed copy.

  Derived by JAX, the weight's is a product of the transposed dy, and on a CPU
  whatever computes dy then runs column by column.
  """
  x_TD, w_DF = saved
  dx_TD = jnp.einsum('TF,DF->TD', dy_TF, w_DF)
  return dx_TD, jnp.einsum('TD,TF->DF', x_TD, dy_TF)


_linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def swiglu(
  x_TD: jax.Array, gate_DF: jax.Array, up_DF: jax.Array, down_FD: jax.Array
) -> jax.Array:
  """W2(silu(W1 x) * W3 x); the product in float32.

  Args:
    x_TD: rows.
    gate_DF: W1.
    up_DF: W3.
    down_FD: W2.

  Returns:
    [T, D] in x's dtype.
  """
  return swiglu_forward(x_TD, None, gate_DF, up_DF, down_FD)[0]


def _forward(x_TD, gate_DF, up_DF, down_FD):
  y_TD, kept = swiglu_forward(x_TD, None, gate_DF, up_DF, down_FD)
  return y_TD, (x_TD, gate_DF, up_DF, down_FD, kept)


def _backward(saved, dy_TD):
  *inputs, kept = saved
  x_TD, *weights = inputs
  dx_TD, _, *dweights = swiglu_backward(x_TD, None, *weights, kept, dy_TD)
  return dx_TD, *(
    d.astype(w.dtype) for d, w in zip(dweights, weights, strict=True)
  )


swiglu.defvjp(_forward, _backward)


def swiglu_forward(
  x_TD: jax.Array,
  scale_T: jax.Array | None,
  gate_DF: jax.Array | BlockScaled,
  up_DF: jax.Array | BlockScaled,
  down_FD: jax.Array | BlockScaled,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """scale * SwiGLU(x), and what its gradient needs.

  The scale multiplies before W2: the same sum, and its gradient is cheap. W1 x
  and W3 x are kept; their SwiGLU is computed again in the backward pass, as
  DeepSeek-V3 does (section 3.2.3).

  Args:
    x_TD: rows, [E, T, D] with experts.
    scale_T: float32 factor of each row, or None.
    gate_DF: W1; FP8 is expanded.
    up_DF: W3.
    down_FD: W2.

  Returns:
    ([T, D] in x's dtype, kept).
  """
  gate_TF = jnp.einsum('...TD,...DF->...TF', x_TD, expand(gate_DF))
  up_TF = jnp.einsum('...TD,...DF->...TF', x_TD, expand(up_DF))
  gate_TF, up_TF = keep(gate_TF, 'swiglu_gate'), keep(up_TF, 'swiglu_up')
  hidden_TF = jax.nn.silu(_float32(gate_TF)) * _float32(up_TF)
  if scale_T is not None:
    hidden_TF *= scale_T[..., None]
  hidden_TF = hidden_TF.astype(x_TD.dtype)
  y_TD = jnp.einsum('...TF,...FD->...TD', hidden_TF, expand(down_FD))
  return y_TD, (gate_TF, up_TF)


def swiglu_backward(x_TD, scale_T, gate_DF, up_DF, down_FD, kept, dy_TD):
  """Gradients of x, scale (None without), W1, W3, W2; the last in float32."""
  dtype = x_TD.dtype
  # The barrier keeps the compiler from storing the forward pass's SwiGLU for
  # here, where one loop computes it again from what is read anyway.
  gate_TF, up_TF = map(_float32, jax.lax.optimization_barrier(kept))
  sigmoid_TF = jax.nn.sigmoid(gate_TF)
  silu_TF = gate_TF * sigmoid_TF
  dhidden_TF = _float32_einsum('...TD,...FD->...TF', dy_TD, down_FD)
  hidden_TF, dscale_T = silu_TF * up_TF, None
  if scale_T is not None:
    dscale_T = reduce_rows(jnp.sum, dhidden_TF * hidden_TF)[..., 0]
    hidden_TF *= scale_T[..., None]
    dhidden_TF *= scale_T[..., None]
  hidden_TF = hidden_TF.astype(dtype)
  dup_TF = (dhidden_TF * silu_TF).astype(dtype)
  dsilu_TF = sigmoid_TF * (1 + gate_TF * (1 - sigmoid_TF))
  dgate_TF = (dhidden_TF * up_TF * dsilu_TF).astype(dtype)
  if x_TD.ndim == 3:
    # Not the last one's either way: its copies cost what its products gain.
    x_TD, gate_DF, up_DF = map(transposed_in_memory, (x_TD, gate_DF, up_DF))
  dx_TD = jnp.einsum('...TF,...DF->...TD', dgate_TF, gate_DF)
  dx_TD += jnp.einsum('...TF,...DF->...TD', dup_TF, up_DF)
  dgate_DF = _float32_einsum('...TD,...TF->...DF', x_TD, dgate_TF)
  dup_DF = _float32_einsum('...TD,...TF->...DF', x_TD, dup_TF)
  ddown_FD = _float32_einsum('...TF,...TD->...FD', hidden_TF, dy_TD)
  return dx_TD, dscale_T, dgate_DF, dup_DF, ddown_FD


def transposed_in_memory(x_EMN: jax.Array) -> jax.Array:
  """The same, laid out for batched products that contract its axis M.

  On a CPU, products of a batch of small matrices take up to twice as long if
  they read one of them against its layout, and a copy is a fifth of that. Those
  of one matrix, with the rows of all tokens, do not.
  """
  return jnp.swapaxes(
    jax.lax.optimization_barrier(jnp.swapaxes(x_EMN, -1, -2)), -1, -2
  )


def _float32_einsum(letters, *operands):
  return jnp.einsum(letters, *operands, preferred_element_type=jnp.float32)


def _float32(x):
  return x.astype(jnp.float32)
