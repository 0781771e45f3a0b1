"""Products with a weight, and SwiGLU, which is made of three of them.

Letters: T rows, D input width, F hidden or output width. A leading axis E, one
matrix per expert, is allowed before T and before D.
"""

import dataclasses
import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from seekax.arrays import PyTree
from seekax.ops.quantize import BlockScaled, expand
from seekax.ops.reductions import reduce_rows
from seekax.ops.rematerialisation import keep


class Products(Protocol):
  """How y = x W and its gradients are multiplied: the policy of a linear map.

  It is hashable, since compiled functions take it as a constant.
  """

  def forward(self, x_TD: jax.Array, w_DF: PyTree) -> jax.Array:
    """x W, in x's dtype."""

  def input_gradient(
    self, dy_TF: jax.Array, w_DF: jax.Array, dtype: jax.typing.DTypeLike
  ) -> jax.Array:
    """dy W^T."""

  def weight_gradient(
    self, x_TD: jax.Array, dy_TF: jax.Array, dtype: jax.typing.DTypeLike
  ) -> jax.Array:
    """x^T dy."""

  def store(self, y_TF: jax.Array, name: str) -> PyTree:
    """Prepares y for SwiGLU's backward pass, saved under `name`."""

  def load(self, stored: PyTree) -> jax.Array:
    """Returns what `store` stored, in float32."""


@dataclasses.dataclass(frozen=True)
class PlainProducts:
  """Multiplies the operands as they are, without quantisation."""

  def forward(self, x_TD, w_DF):
    return jnp.einsum('...TD,...DF->...TF', x_TD, expand(w_DF))

  def input_gradient(self, dy_TF, w_DF, dtype):
    return _einsum('...TF,...DF->...TD', dy_TF, w_DF, dtype)

  def weight_gradient(self, x_TD, dy_TF, dtype):
    return _einsum('...TD,...TF->...DF', x_TD, dy_TF, dtype)

  def store(self, y_TF, name):
    return keep(y_TF, name)

  def load(self, stored):
    return _float32(stored)


PLAIN = PlainProducts()


class SwigluProducts(NamedTuple):
  """How W1 and W3 multiply (`into`), and how W2 does."""

  into: Products = PLAIN
  out_of: Products = PLAIN


PLAIN_SWIGLU = SwigluProducts()


def linear(
  x: jax.Array, weight: jax.Array, products: Products = PLAIN
) -> jax.Array:
  """Contracts the last axis of x with the first of a weight.

  Args:
    x: [..., D].
    weight: [D, ...].
    products: how the weight is multiplied, forward and backward.

  Returns:
    [..., ...] in x's dtype.
  """
  rows_TD = x.reshape(-1, x.shape[-1])
  y_TF = _linear(products, rows_TD, weight.reshape(x.shape[-1], -1))
  return y_TF.reshape(*x.shape[:-1], *weight.shape[1:])


def contract(
  x: jax.Array, weight: jax.Array, axes: int, products: Products = PLAIN
) -> jax.Array:
  """Contracts x's last `axes` axes with equally many first axes of a weight."""
  x = x.reshape(*x.shape[:-axes], -1)
  return linear(x, weight.reshape(-1, *weight.shape[axes:]), products)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(products, x_TD, w_DF):
  return products.forward(x_TD, w_DF)


def _linear_forward(products, x_TD, w_DF):
  return products.forward(x_TD, w_DF), (x_TD, w_DF)


def _linear_backward(products, saved, dy_TF):
  """The usual gradients, ordered so that no transposed copy is needed.

  JAX would derive the weight's gradient as a product with the transposed dy,
  and on a CPU the computation of dy would then run column by column.
  """
  x_TD, w_DF = saved
  dx_TD = products.input_gradient(dy_TF, w_DF, x_TD.dtype)
  return dx_TD, products.weight_gradient(x_TD, dy_TF, w_DF.dtype)


_linear.defvjp(_linear_forward, _linear_backward)


def swiglu(
  x_TD: jax.Array,
  gate_DF: jax.Array,
  up_DF: jax.Array,
  down_FD: jax.Array,
  products: SwigluProducts = PLAIN_SWIGLU,
) -> jax.Array:
  """W2(silu(W1 x) * W3 x); the elementwise product is float32.

  Args:
    x_TD: rows.
    gate_DF: W1.
    up_DF: W3.
    down_FD: W2.
    products: how the three are multiplied.

  Returns:
    [T, D] in x's dtype.
  """
  return _swiglu(products, x_TD, gate_DF, up_DF, down_FD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _swiglu(products, x_TD, gate_DF, up_DF, down_FD):
  return swiglu_forward(products, x_TD, None, gate_DF, up_DF, down_FD)[0]


def _forward(products, x_TD, *weights):
  y_TD, kept = swiglu_forward(products, x_TD, None, *weights)
  return y_TD, (x_TD, weights, kept)


def _backward(products, saved, dy_TD):
  x_TD, weights, kept = saved
  gate_DF, up_DF, down_FD = weights
  dx_TD, _, *dweights = swiglu_backward(
    products, x_TD, None, gate_DF, up_DF, down_FD, kept, dy_TD
  )
  return dx_TD, *(
    d.astype(w.dtype) for d, w in zip(dweights, weights, strict=True)
  )


_swiglu.defvjp(_forward, _backward)


def swiglu_forward(
  products: SwigluProducts,
  x_TD: jax.Array,
  scale_T: jax.Array | None,
  gate_DF: jax.Array | BlockScaled,
  up_DF: jax.Array | BlockScaled,
  down_FD: jax.Array | BlockScaled,
) -> tuple[jax.Array, tuple[PyTree, PyTree]]:
  """Returns scale * SwiGLU(x), and the residuals for its gradient.

  The scale multiplies before W2: the result is the same, and its gradient is
  cheap. W1 x and W3 x are kept; their SwiGLU is computed again in the backward
  pass, as in DeepSeek-V3 (section 3.2.3).

  Args:
    products: how the three are multiplied.
    x_TD: rows, [E, T, D] with experts.
    scale_T: float32 factor of each row, or None.
    gate_DF: W1; a stored FP8 weight is expanded.
    up_DF: W3.
    down_FD: W2.

  Returns:
    ([T, D] in x's dtype, residuals).
  """
  gate_TF = products.into.forward(x_TD, gate_DF)
  up_TF = products.into.forward(x_TD, up_DF)
  kept = (
    products.into.store(gate_TF, 'swiglu_gate'),
    products.into.store(up_TF, 'swiglu_up'),
  )
  hidden_TF = jax.nn.silu(_float32(gate_TF)) * _float32(up_TF)
  if scale_T is not None:
    hidden_TF *= scale_T[..., None]
  hidden_TF = hidden_TF.astype(x_TD.dtype)
  return products.out_of.forward(hidden_TF, down_FD), kept


def swiglu_backward(
  products, x_TD, scale_T, gate_DF, up_DF, down_FD, kept, dy_TD
):
  """Gradients of x, scale (None without), W1, W3, W2; weights' in float32."""
  dtype = x_TD.dtype
  # The barrier keeps the compiler from storing the forward pass's SwiGLU for
  # the backward pass, where one loop recomputes it from what it reads anyway.
  kept = jax.lax.optimization_barrier(kept)
  gate_TF, up_TF = map(products.into.load, kept)
  sigmoid_TF = jax.nn.sigmoid(gate_TF)
  silu_TF = gate_TF * sigmoid_TF
  dhidden_TF = products.out_of.input_gradient(dy_TD, down_FD, jnp.float32)
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
    # Not W2's operands: copying them costs what their product gains.
    x_TD, gate_DF, up_DF = map(transposed_in_memory, (x_TD, gate_DF, up_DF))
  dx_TD = products.into.input_gradient(dgate_TF, gate_DF, dtype)
  dx_TD += products.into.input_gradient(dup_TF, up_DF, dtype)
  dgate_DF = products.into.weight_gradient(x_TD, dgate_TF, jnp.float32)
  dup_DF = products.into.weight_gradient(x_TD, dup_TF, jnp.float32)
  ddown_FD = products.out_of.weight_gradient(hidden_TF, dy_TD, jnp.float32)
  return dx_TD, dscale_T, dgate_DF, dup_DF, ddown_FD


def transposed_in_memory(x_EMN: jax.Array) -> jax.Array:
  """The same values, laid out for batched products that contract axis M.

  On a CPU, batched products of small matrices take up to twice as long if they
  read one operand against its layout, and a copy costs a fifth of that. The
  product of a single matrix with the rows of all tokens doesn't have this cost.
  """
  return jnp.swapaxes(
    jax.lax.optimization_barrier(jnp.swapaxes(x_EMN, -1, -2)), -1, -2
  )


def _einsum(letters, a, b, dtype):
  wide = jnp.result_type(a, b) != jnp.dtype(dtype)
  preferred = dtype if wide else None
  return jnp.einsum(letters, a, b, preferred_element_type=preferred)


def _float32(x):
  return x.astype(jnp.float32)
