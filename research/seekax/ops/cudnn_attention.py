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

_FUSED = 'jax._src.cudnn.fused_attention_stablehlo'


def version() -> int:
  """Version of the cuDNN that JAX loaded, e.g. 91002; 0 if there is none."""
  try:
    from jax._src.lib import cuda_versions

    return cuda_versions.cudnn_get_version() if cuda_versions else 0
  except (AttributeError, ImportError, RuntimeError):
    return 0


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
