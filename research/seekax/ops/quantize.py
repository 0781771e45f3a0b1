"""A weight that stays in FP8: codes and block scales, expanded at each use.

Letters: I input width, O output width.
"""

import math

from flax import struct
import jax
import jax.numpy as jnp

BLOCK = 128


@struct.dataclass
class BlockScaled:
  """A matrix as E4M3 codes with one float32 scale per block of 128 x 128.

  Attributes:
    codes: the E4M3 bits as uint8, [..., inputs, outputs], in the shape of the
      weight. On a CPU, XLA turns an FP8 array that is sliced or gathered into
      float16, a whole stack of layers at once; bytes stay bytes.
    scales: [..., ceil(I / 128), ceil(O / 128)], with the same leading axes.
    inputs: number of the codes' axes that are the matrix's input.
    outputs: number of the codes' axes that are its output.
    dtype: dtype after expansion, float32 or bfloat16.
  """

  codes: jax.Array
  scales: jax.Array
  inputs: int = struct.field(pytree_node=False)
  outputs: int = struct.field(pytree_node=False)
  dtype: str = struct.field(pytree_node=False)

  @property
  def shape(self) -> tuple[int, ...]:
    return self.codes.shape


def expand(weight: jax.Array | BlockScaled) -> jax.Array:
  """Returns the values: codes times scales in float32, rounded once.

  Args:
    weight: a weight; an array is returned unchanged.

  Returns:
    An array of the codes' shape in the weight's dtype.

  References:
    DeepSeek-V3, section 3.3; the released weights' `weight_scale_inv`.
  """
  if not isinstance(weight, BlockScaled):
    return weight
  shape = weight.codes.shape
  lead = shape[: len(shape) - weight.inputs - weight.outputs]
  split = len(lead) + weight.inputs
  codes = weight.codes.reshape(
    *lead, math.prod(shape[len(lead) : split]), math.prod(shape[split:])
  )
  scales = _stretch(weight.scales, codes.shape[-2], -2)
  scales = _stretch(scales, codes.shape[-1], -1)
  codes = jax.lax.bitcast_convert_type(codes, jnp.float8_e4m3fn)
  values = codes.astype(jnp.float32) * scales
  return values.astype(weight.dtype).reshape(shape)


def _stretch(scales: jax.Array, size: int, axis: int) -> jax.Array:
  """Repeats each scale over its block; the last block may be partial."""
  whole = jnp.repeat(scales, BLOCK, axis=axis)
  return jax.lax.slice_in_dim(whole, 0, size, axis=axis)
