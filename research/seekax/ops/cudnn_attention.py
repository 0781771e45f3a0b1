"""Causal attention by cuDNN's fused kernel.

JAX's public function refuses values of another width than the keys'. The
function below it takes them, on Hopper and later with cuDNN 9.10 (PR 28872 of
jax-ml/jax), but is private and may move: a test checks that it exists. It takes
no document numbers. Not run here on a GPU.

Letters: B batch, L positions, H query heads, N key/value heads, K query/key
width, U value width.
"""

import importlib

import jax

from seekax.ops.devices import Device
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

OLDEST = 90000
# The first that takes values of another width than the keys'.
OLDEST_UNEQUAL = 91000
_FUSED = 'jax._src.cudnn.fused_attention_stablehlo'


def causal_attention(
  q_BLHK: jax.Array, k_BLNK: jax.Array, v_BLNU: jax.Array, scale: float
) -> jax.Array:
  """Softmax attention over the positions at or before each query.

  Args:
    q_BLHK: queries, bfloat16 or float16; K is a multiple of 8.
    k_BLNK: keys; N divides H.
    v_BLNU: values.
    scale: factor on the logits.

  Returns:
    [B, L, H, U] in the values' dtype.

  Raises:
    NotImplementedError, RuntimeError: cuDNN can't do this on this device.
  """
  if q_BLHK.shape[-1] == v_BLNU.shape[-1]:
    return jax.nn.dot_product_attention(
      q_BLHK,
      k_BLNK,
      v_BLNU,
      scale=scale,
      is_causal=True,
      implementation='cudnn',
    )
  fused = importlib.import_module(_FUSED)
  return fused.dot_product_attention(
    q_BLHK, k_BLNK, v_BLNU, scale=scale, mask_type=fused.MaskType.CAUSAL
  )


def problem(need: Need) -> str:
  """Why cuDNN can't do this, or ''; the fix stands after a semicolon."""
  found = gpu_problem(need, AMPERE)
  found = found or dtype_problem(need, 'bfloat16', 'float16')
  found = found or whole_problem(need)
  if found:
    return found
  device = need.device
  is_hopper = device.compute_capability >= HOPPER
  widest = 256 if is_hopper else 128
  unequal = need.heads_width != need.value_width
  if found := attached_problem(need):
    return found
  if need.segments:
    return (
      'would let documents see each other, it takes no document numbers; set '
      'data.isolate_documents=False or take tokamax or chunked'
    )
  if device.cudnn < OLDEST:
    return f'needs cuDNN 9, found {_version_name(device)}; install a newer one'
  if unequal and (not is_hopper or device.cudnn < OLDEST_UNEQUAL):
    return (
      f'query/key width {need.heads_width} beside value width '
      f'{need.value_width} needs cuDNN 9.10 on Hopper or later, this is cuDNN '
      f'{_version_name(device)} on {device}; install a newer one or take '
      'tokamax'
    )
  if max(need.heads_width, need.value_width) > widest or any(
    width % 8 for width in (need.heads_width, need.value_width)
  ):
    return (
      f'widths {need.heads_width} and {need.value_width} are not multiples of '
      f'8 up to {widest}; take chunked'
    )
  blackwell = device.compute_capability >= BLACKWELL
  if blackwell and not unequal and need.heads_width > 128:
    return (
      f'has no backward pass of equal widths {need.heads_width} on Blackwell; '
      'take tokamax or chunked'
    )
  return ''


def _version_name(device: Device) -> str:
  if not device.cudnn:
    return 'none'
  major, rest = divmod(device.cudnn, 10000)
  return f'{major}.{rest // 100}.{rest % 100}'
