"""Writes a ModelConfig as the config.json that describes it."""

from seekax.configuration.model import ModelConfig
from seekax.files import JsonObject
from seekax.storage.huggingface import FP8, POWER_OF_TWO
from seekax.storage.manifest import StorageError


def published_config(
  model: ModelConfig, dtype: str, fp8: bool, power_of_two: bool
) -> JsonObject:
  """The config.json that describes a model, in the published spelling.

  Args:
    model: the architecture.
    dtype: float32 or bfloat16, the dtype of everything that isn't FP8.
    fp8: whether matrices are FP8 codes and scales.
    power_of_two: whether the scales are powers of two.

  Raises:
    StorageError: no published architecture computes this.
  """
  _check_published_form(model)
  published: JsonObject = {
    'vocab_size': model.vocab_size,
    'hidden_size': model.embed_dim,
    'num_hidden_layers': model.num_layers,
    'num_attention_heads': model.num_heads,
    'intermediate_size': model.mlp_dim,
    'max_position_embeddings': model.context_length,
    'rms_norm_eps': model.norm_eps,
    'initializer_range': model.init_std,
    'hidden_act': 'silu',
    'attention_bias': False,
    'attention_dropout': 0.0,
    'tie_word_embeddings': False,
    'use_cache': True,
    'torch_dtype': dtype,
    'rope_theta': model.rope_theta,
    'rope_scaling': _published_rope(model),
  }
  published |= (
    _published_latent(model)
    if model.attention == 'mla'
    else _published_grouped(model)
  )
  if fp8:
    scale_format = {'scale_fmt': POWER_OF_TWO} if power_of_two else {}
    published['quantization_config'] = FP8 | scale_format
  return published


def _check_published_form(model: ModelConfig) -> None:
  def require(condition: bool, key: str) -> None:
    if not condition:
      raise StorageError(
        f'no published architecture has model.{key}={getattr(model, key)!r} '
        f'together with model.attention={model.attention!r}, model.ffn='
        f'{model.ffn!r} and model.router={model.router!r}'
      )

  require(model.rope_scaling != 'linear', 'rope_scaling')
  if model.attention != 'mla':
    require(not model.uses_experts, 'ffn')
    require(model.nope_head_dim == 0, 'nope_head_dim')
    require(model.rope_layout == 'half', 'rope_layout')
    require(model.value_head_dim == model.rope_head_dim, 'value_head_dim')
    require(model.rope_scaling != 'yarn', 'rope_scaling')
    require(model.mtp_depth == 0, 'mtp_depth')
    return
  require(model.rope_scaling != 'llama3', 'rope_scaling')
  if not model.uses_experts:
    require(model.mtp_depth == 0, 'mtp_depth')
  elif model.router == 'sigmoid':
    require(
      model.num_expert_groups == 1 or model.group_score == 'top2', 'group_score'
    )
    require(model.num_shared_experts > 0, 'num_shared_experts')
  else:
    require(
      model.num_expert_groups == 1 or model.group_score == 'max', 'group_score'
    )
    require(not model.normalize_gates, 'normalize_gates')
    require(model.mtp_depth == 0, 'mtp_depth')
    require(model.rope_layout == 'interleaved', 'rope_layout')


def _published_rope(model: ModelConfig) -> JsonObject | None:
  if model.rope_scaling == 'none':
    return None
  rope = {
    'type': model.rope_scaling,
    'rope_type': model.rope_scaling,
    'factor': model.rope_factor,
    'original_max_position_embeddings': model.rope_original_length,
  }
  if model.rope_scaling == 'llama3':
    return rope | {
      'low_freq_factor': model.llama3_low_freq_factor,
      'high_freq_factor': model.llama3_high_freq_factor,
    }
  return rope | {
    'beta_fast': model.yarn_beta_fast,
    'beta_slow': model.yarn_beta_slow,
    'mscale': model.yarn_mscale,
    'mscale_all_dim': model.yarn_mscale_all_dim,
  }


def _published_grouped(model: ModelConfig) -> JsonObject:
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'num_key_value_heads': model.kv_heads,
    'head_dim': model.rope_head_dim,
    'mlp_bias': False,
  }


def _published_latent(model: ModelConfig) -> JsonObject:
  v3 = model.router == 'sigmoid' or not model.uses_experts
  version = '3' if v3 else '2'
  grouped = model.num_expert_groups > 1
  published = {
    'architectures': [f'DeepseekV{version}ForCausalLM'],
    'model_type': f'deepseek_v{version}',
    'num_key_value_heads': model.num_heads,
    'q_lora_rank': model.query_latent_dim or None,
    'kv_lora_rank': model.kv_latent_dim,
    'qk_nope_head_dim': model.nope_head_dim,
    'qk_rope_head_dim': model.rope_head_dim,
    'v_head_dim': model.value_head_dim,
    'first_k_dense_replace': model.num_plain_layers,
    'moe_layer_freq': 1,
    'num_nextn_predict_layers': model.mtp_depth,
  }
  if model.rope_layout == 'half':
    published['rope_interleave'] = False
  if not model.uses_experts:
    return published
  return published | {
    'n_routed_experts': model.num_experts,
    'n_shared_experts': model.num_shared_experts,
    'num_experts_per_tok': model.experts_per_token,
    'moe_intermediate_size': model.expert_dim,
    'n_group': model.num_expert_groups,
    'topk_group': model.num_kept_groups,
    'routed_scaling_factor': model.routed_scale,
    'norm_topk_prob': model.normalize_gates,
    'scoring_func': model.router,
    'topk_method': 'noaux_tc'
    if v3
    else 'group_limited_greedy'
    if grouped
    else 'greedy',
  }


# Never kept: they name code, or say what is written in another spelling.
_NOT_CARRIED = ('auto_map', 'quantization_config', 'rope_parameters', 'dtype')
_NOT_CARRIED += ('transformers_version', '_name_or_path')


def carry_fields(made: JsonObject, published: JsonObject) -> JsonObject:
  """Adds to a config.json the other fields of the model's published one.

  Args:
    made: the result of published_config; its fields take precedence.
    published: fields of the weights' own config.json; {} for none.

  Returns:
    `made`, plus ids of control tokens, values for training and the like.
  """
  kept = {k: v for k, v in published.items() if k not in _NOT_CARRIED}
  return kept | made
