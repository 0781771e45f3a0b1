"""Size of the key/value cache in closed form."""

from seekax.config import ModelConfig


def cache_elements_per_token(model: ModelConfig) -> int:
  """Values cached per token over all layers (DeepSeek-V2, table 1).

  MLA keeps the latent and one rotary key for all heads (C + R per layer), the
  others every key/value head (H_kv x (K + R + U) per layer).
  """
  if model.attention == 'mla':
    per_layer = model.kv_latent_dim + model.rope_head_dim
  else:
    per_layer = model.kv_heads * (model.qk_head_dim + model.value_head_dim)
  return model.num_layers * per_layer


def expanded_cache_elements_per_token(model: ModelConfig) -> int:
  """Values per token if the keys and values of all computed heads were kept.

  That is what MLA saves: a cache of expanded heads is 71 times as large in V3.
  The same as `cache_elements_per_token` for other kinds of attention.
  """
  width = model.qk_head_dim + model.value_head_dim
  return model.num_layers * model.kv_heads * width


def cache_bytes_per_token(
  model: ModelConfig, bytes_per_element: float = 2.0
) -> float:
  """Bytes cached per token over all layers; 70,272 for V3 in bfloat16.

  Args:
    model: the architecture. MTP modules cache nothing here: they are left out.
    bytes_per_element: 2 for bfloat16, 0.75 for six bits.

  Returns:
    Bytes per token.
  """
  return cache_elements_per_token(model) * bytes_per_element
