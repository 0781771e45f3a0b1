"""Reads a published config.json as a ModelConfig.

Two spellings are read: the published one (rope_scaling with `type`, rope_theta
beside it) and that of newer transformers (rope_parameters with `rope_type`). A
field that changes what the model computes and isn't supported is refused by
name; `auto_map` and remote code are never used. published_config.py writes.
"""

import pathlib
import re

from absl import logging

from seekax.configuration.errors import ConfigError
from seekax.configuration.model import ModelConfig
from seekax.files import JsonObject, parse_json, quoted, read_bounded
from seekax.storage.manifest import StorageError
from seekax.storage.published_fields import Fields, MAX_COUNT, NEUTRAL
from seekax.storage.published_rope import rotary_fields

CONFIG, GENERATION_CONFIG = 'config.json', 'generation_config.json'

_V3_TYPES = ('deepseek_v3', 'kimi_k2')
MODEL_TYPES = (*_V3_TYPES, 'deepseek_v2', 'llama')
# Fields that must be present.
_REQUIRED = (
  'vocab_size',
  'hidden_size',
  'num_hidden_layers',
  'num_attention_heads',
  'intermediate_size',
)
_REQUIRED_LATENT = (
  'kv_lora_rank',
  'qk_nope_head_dim',
  'qk_rope_head_dim',
  'v_head_dim',
)
_REQUIRED_EXPERTS = ('num_experts_per_tok', 'moe_intermediate_size')
# transformers would give these, if missing, the values of the 671B model.
_REQUIRED_V3 = ('n_group', 'topk_group', 'routed_scaling_factor')
# The published names of our fields, for error messages.
_PUBLISHED_NAMES = {
  'vocab_size': 'vocab_size',
  'embed_dim': 'hidden_size',
  'num_layers': 'num_hidden_layers',
  'num_dense_layers': 'first_k_dense_replace',
  'context_length': 'max_position_embeddings',
  'num_heads': 'num_attention_heads',
  'num_kv_heads': 'num_key_value_heads',
  'query_latent_dim': 'q_lora_rank',
  'kv_latent_dim': 'kv_lora_rank',
  'nope_head_dim': 'qk_nope_head_dim',
  'value_head_dim': 'v_head_dim',
  'mlp_dim': 'intermediate_size',
  'expert_dim': 'moe_intermediate_size',
  'num_experts': 'n_routed_experts',
  'num_shared_experts': 'n_shared_experts',
  'experts_per_token': 'num_experts_per_tok',
  'num_expert_groups': 'n_group',
  'num_kept_groups': 'topk_group',
  'routed_scale': 'routed_scaling_factor',
  'norm_eps': 'rms_norm_eps',
  'init_std': 'initializer_range',
  'rope_theta': 'rope_theta',
  'rope_factor': 'factor',
  'rope_original_length': 'original_max_position_embeddings',
  'yarn_beta_fast': 'beta_fast',
  'yarn_beta_slow': 'beta_slow',
  'llama3_low_freq_factor': 'low_freq_factor',
  'llama3_high_freq_factor': 'high_freq_factor',
}
FP8 = {
  'activation_scheme': 'dynamic',
  'fmt': 'e4m3',
  'quant_method': 'fp8',
  'weight_block_size': [128, 128],
}
POWER_OF_TWO = 'ue8m0'


def read_config(path: pathlib.Path) -> JsonObject:
  """Reads the fields of a config.json.

  Raises:
    StorageError: it is missing, too large, or not a JSON object.
  """
  text = read_bounded(path, 'config.json', StorageError)
  published = parse_json(path, text, StorageError)
  if not isinstance(published, dict):
    raise StorageError(f'{path} is no JSON object')
  if 'auto_map' in published:
    logging.warning(
      '%s: auto_map is ignored; no code of a checkpoint is ever run', path
    )
  return published


def is_published(path: pathlib.Path) -> bool:
  """Whether a folder looks like a Hugging Face model."""
  return (path / CONFIG).is_file()


def model_config(published: JsonObject, where: str) -> ModelConfig:
  """The architecture that a config.json describes.

  Args:
    published: the fields of config.json.
    where: names the file in errors.

  Raises:
    StorageError: a field is missing, contradicts another or isn't supported.
  """
  fields = Fields(published, where)
  kind = published.get('model_type')
  if kind not in MODEL_TYPES:
    fields.refuse('model_type', f'known: {", ".join(MODEL_TYPES)}')
  for name, values in NEUTRAL.items():
    if published.get(name, values[0]) not in values:
      fields.refuse(name, f'only {values[0]!r} is supported')
  for name in _REQUIRED:
    fields.count(name)
  llama = kind == 'llama'
  rope_head_dim = 'head_dim' if llama else 'qk_rope_head_dim'
  words = _PUBLISHED_NAMES | {'rope_head_dim': rope_head_dim}
  try:
    read = _llama if llama else _deepseek
    return ModelConfig(**_shared(fields), **read(fields))
  except ConfigError as error:
    message = re.sub(
      r'model\.(\w+)', lambda m: words.get(m[1], m[0]), str(error)
    )
    raise StorageError(f'{where}: {message}') from error


def end_ids(fields: JsonObject, where: str) -> list[int]:
  """Returns the ids of `eos_token_id`, which is a number or a list of them.

  Args:
    fields: fields of a config.json or generation_config.json.
    where: names the file in errors.

  Raises:
    StorageError: it is neither.
  """
  found = fields.get('eos_token_id')
  if found is None:
    return []
  ids = found if isinstance(found, list) else [found]
  if not all(type(x) is int and 0 <= x < MAX_COUNT for x in ids):
    raise StorageError(
      f'{where}: eos_token_id={quoted(found)} is neither a token id nor a list '
      'of them'
    )
  return ids


def quantization(published: JsonObject, where: str) -> tuple[bool, bool]:
  """Returns (stored as FP8 blocks, scales are powers of two).

  Raises:
    StorageError: the weights are quantised in another way.
  """
  found = published.get('quantization_config')
  if found is None:
    return False, False
  if not isinstance(found, dict):
    raise StorageError(f'{where}: quantization_config is no JSON object')
  for name, value in FP8.items():
    if name in found and found[name] != value:
      raise StorageError(
        f'{where}: quantization_config.{name}={quoted(found[name])} is '
        f'not supported; only {value!r} is'
      )
  scale_format = found.get('scale_fmt')
  if 'quant_method' not in found or scale_format not in (
    None,
    'float',
    POWER_OF_TWO,
  ):
    raise StorageError(
      f'{where}: quantization_config with quant_method='
      f'{quoted(found.get("quant_method"))} and scale_fmt='
      f'{quoted(scale_format)} is not supported; only FP8 blocks with '
      'float or ue8m0 scales are'
    )
  return True, scale_format == POWER_OF_TWO


def _shared(fields: Fields) -> JsonObject:
  return dict(
    vocab_size=fields.count('vocab_size'),
    embed_dim=fields.count('hidden_size'),
    num_layers=fields.count('num_hidden_layers'),
    num_heads=fields.count('num_attention_heads'),
    mlp_dim=fields.count('intermediate_size'),
    context_length=fields.count('max_position_embeddings', 4096),
    norm_eps=fields.number('rms_norm_eps', 1e-6),
    init_std=fields.number('initializer_range', 0.02),
    **rotary_fields(fields),
  )


def _llama(fields: Fields) -> JsonObject:
  heads = fields.count('num_attention_heads')
  kv_heads = heads
  if fields.published.get('num_key_value_heads') is not None:
    kv_heads = fields.count('num_key_value_heads')
  width = fields.count('hidden_size')
  if fields.published.get('head_dim') is not None:
    head_dim = fields.count('head_dim')
  elif not heads or width % heads:
    fields.refuse('hidden_size', f'it is not divisible by {heads} heads')
  else:
    head_dim = width // heads
  return dict(
    num_dense_layers=0,
    attention='gqa',
    num_kv_heads=kv_heads,
    query_latent_dim=0,
    kv_latent_dim=0,
    nope_head_dim=0,
    rope_head_dim=head_dim,
    value_head_dim=head_dim,
    ffn='dense',
    rope_layout='half',
    mtp_depth=0,
  )


def _deepseek(fields: Fields) -> JsonObject:
  for name in _REQUIRED_LATENT:
    fields.count(name)
  published = fields.published
  nope, rope = (
    fields.count('qk_nope_head_dim'),
    fields.count('qk_rope_head_dim'),
  )
  fields.same('qk_head_dim', nope + rope)
  if published.get('head_dim') not in (None, rope, nope + rope):
    fields.refuse('head_dim', f'qk_rope_head_dim is {rope}')
  fields.same('num_key_value_heads', fields.count('num_attention_heads'))
  interleaved = fields.flag('rope_interleave', True)
  return dict(
    num_dense_layers=fields.count('first_k_dense_replace'),
    attention='mla',
    query_latent_dim=fields.count('q_lora_rank', 0),
    kv_latent_dim=fields.count('kv_lora_rank'),
    nope_head_dim=nope,
    rope_head_dim=rope,
    value_head_dim=fields.count('v_head_dim'),
    rope_layout='interleaved' if interleaved else 'half',
    mtp_depth=fields.count('num_nextn_predict_layers', 0),
    **_experts(fields),
  )


def _experts(fields: Fields) -> JsonObject:
  layers = fields.count('num_hidden_layers')
  if fields.count('first_k_dense_replace') >= layers or (
    fields.count('n_routed_experts') == 0
  ):
    return dict(ffn='dense')
  v3 = fields.published['model_type'] in _V3_TYPES
  for name in _REQUIRED_EXPERTS + (_REQUIRED_V3 if v3 else ()):
    fields.number(name)
  router, groups = _router(fields, v3)
  return dict(
    ffn='experts',
    expert_dim=fields.count('moe_intermediate_size'),
    num_experts=fields.count('n_routed_experts'),
    num_shared_experts=fields.count('n_shared_experts', 0),
    experts_per_token=fields.count('num_experts_per_tok'),
    normalize_gates=_normalize_gates(fields, v3),
    routed_scale=fields.number('routed_scaling_factor', 1.0),
    router=router,
    group_score='top2' if v3 else 'max',
    **groups,
  )


def _normalize_gates(fields: Fields, v3: bool) -> bool:
  normalize = fields.flag('norm_topk_prob', v3)
  if normalize and not v3:
    fields.refuse('norm_topk_prob', 'only false is supported in deepseek_v2')
  return normalize


def _router(fields: Fields, v3: bool) -> tuple[str, dict[str, int]]:
  """Returns the kind of router and its groups."""
  router, methods = 'sigmoid', ('noaux_tc',)
  if not v3:
    router, methods = 'softmax', ('greedy', 'group_limited_greedy')
  fields.same('scoring_func', router)
  for name in ('n_group', 'topk_group'):
    # Null in some configs means that there are no groups; zero is an error.
    if fields.published.get(name) is not None and not fields.count(name):
      fields.refuse(name, 'a whole number above 0, or null, is wanted')
  method = fields.published.get('topk_method', methods[0])
  if method not in methods:
    fields.refuse('topk_method', f'known: {", ".join(methods)}')
  if method == 'greedy':
    return router, dict(num_expert_groups=1, num_kept_groups=1)
  return router, dict(
    num_expert_groups=fields.count('n_group', 1) or 1,
    num_kept_groups=fields.count('topk_group', 1) or 1,
  )
