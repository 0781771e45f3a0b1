"""The published models by name, and what shrinks them to a laptop.

Semantics only, taken from the released configurations; how a model is trained
is said in configs/.
"""

from collections.abc import Callable
import dataclasses

import ml_collections

from seekax.configuration.config import Config, to_config_dict
from seekax.configuration.errors import ConfigError, did_you_mean
from seekax.configuration.model import ModelConfig


def v3_671b() -> ModelConfig:
  """DeepSeek-V3, V3-Base and R1 as released (arXiv 2412.19437)."""
  return ModelConfig()


def v2() -> ModelConfig:
  """DeepSeek-V2 236B (arXiv 2405.04434)."""
  return dataclasses.replace(
    v2_lite(),
    embed_dim=5120,
    num_layers=60,
    num_heads=128,
    query_latent_dim=1536,
    mlp_dim=12288,
    expert_dim=1536,
    num_experts=160,
    num_expert_groups=8,
    num_kept_groups=3,
    routed_scale=16.0,
    yarn_mscale=1.0,
    yarn_mscale_all_dim=1.0,
  )


def v2_lite() -> ModelConfig:
  """DeepSeek-V2-Lite 15.7B (arXiv 2405.04434, appendix B)."""
  return ModelConfig(
    vocab_size=102400,
    embed_dim=2048,
    num_layers=27,
    num_dense_layers=1,
    num_heads=16,
    query_latent_dim=0,
    mlp_dim=10944,
    expert_dim=1408,
    num_experts=64,
    num_shared_experts=2,
    experts_per_token=6,
    num_expert_groups=1,
    num_kept_groups=1,
    router='softmax',
    group_score='max',
    normalize_gates=False,
    routed_scale=1.0,
    mtp_depth=0,
    yarn_mscale=0.707,
    yarn_mscale_all_dim=0.707,
  )


def moonlight() -> ModelConfig:
  """Moonlight-16B-A3B: V3's router, no groups, no query latent, no YaRN."""
  return dataclasses.replace(
    v2_lite(),
    vocab_size=163840,
    context_length=8192,
    mlp_dim=11264,
    router='sigmoid',
    group_score='top2',
    normalize_gates=True,
    routed_scale=2.446,
    norm_eps=1e-5,
    rope_theta=50000.0,
    rope_scaling='none',
    yarn_mscale=1.0,
    yarn_mscale_all_dim=1.0,
  )


def kimi_k2() -> ModelConfig:
  """Kimi-K2, 1T parameters: 384 experts, 64 heads, one group."""
  return ModelConfig(
    vocab_size=163840,
    num_dense_layers=1,
    context_length=131072,
    num_heads=64,
    num_experts=384,
    num_expert_groups=1,
    num_kept_groups=1,
    routed_scale=2.827,
    mtp_depth=0,
    rope_theta=50000.0,
    rope_factor=32.0,
    yarn_beta_fast=1.0,
    yarn_beta_slow=1.0,
  )


def _llama3_1(
  embed_dim: int, num_layers: int, num_heads: int, mlp_dim: int
) -> ModelConfig:
  return ModelConfig(
    vocab_size=128256,
    embed_dim=embed_dim,
    num_layers=num_layers,
    num_dense_layers=0,
    context_length=131072,
    attention='gqa',
    num_heads=num_heads,
    num_kv_heads=8,
    query_latent_dim=0,
    kv_latent_dim=0,
    nope_head_dim=0,
    rope_head_dim=128,
    value_head_dim=128,
    ffn='dense',
    mlp_dim=mlp_dim,
    mtp_depth=0,
    norm_eps=1e-5,
    init_std=0.02,
    rope_theta=500000.0,
    rope_layout='half',
    rope_scaling='llama3',
    rope_factor=8.0,
    rope_original_length=8192,
  )


def llama3_8b() -> ModelConfig:
  """The dense baseline in the shape of Llama 3.1 8B."""
  return _llama3_1(4096, 32, 32, 14336)


def llama3_70b() -> ModelConfig:
  """The dense baseline in the shape of Llama 3.1 70B."""
  return _llama3_1(8192, 80, 64, 28672)


def llama3_405b() -> ModelConfig:
  """The dense baseline in the shape of Llama 3.1 405B."""
  return _llama3_1(16384, 126, 128, 53248)


def tiny() -> ModelConfig:
  """Every part of DeepSeek-V3 at a size that trains in seconds on a CPU."""
  return shrink(v3_671b())


def llama3_tiny() -> ModelConfig:
  """The dense baseline at the size of `tiny`."""
  return shrink(llama3_8b())


PRESETS: dict[str, Callable[[], ModelConfig]] = {
  'v3_671b': v3_671b,
  'v2': v2,
  'v2_lite': v2_lite,
  'moonlight': moonlight,
  'kimi_k2': kimi_k2,
  'llama3_8b': llama3_8b,
  'llama3_70b': llama3_70b,
  'llama3_405b': llama3_405b,
  'llama3_tiny': llama3_tiny,
  'tiny': tiny,
}


def shrink(model: ModelConfig) -> ModelConfig:
  """The same kinds of parts at laptop size: what `:tiny` does to a model."""
  groups = min(model.num_expert_groups, 4)
  return dataclasses.replace(
    model,
    vocab_size=min(model.vocab_size, 512),
    embed_dim=64,
    num_layers=3,
    num_dense_layers=min(model.num_dense_layers, 1),
    context_length=min(model.context_length, 256),
    num_heads=4,
    num_kv_heads=min(model.num_kv_heads, 2),
    query_latent_dim=min(model.query_latent_dim, 32),
    kv_latent_dim=min(model.kv_latent_dim, 32),
    nope_head_dim=min(model.nope_head_dim, 16),
    rope_head_dim=min(model.rope_head_dim, 16),
    value_head_dim=min(model.value_head_dim, 16),
    mlp_dim=128,
    expert_dim=32,
    num_experts=min(model.num_experts, 16),
    num_expert_groups=groups,
    num_kept_groups=min(model.num_kept_groups, max(groups // 2, 1)),
    experts_per_token=min(model.experts_per_token, 4),
    init_std=0.02,
    rope_original_length=min(model.rope_original_length, 64),
  )


def run_of(model: ModelConfig) -> ml_collections.ConfigDict:
  """A run of this model with everything else at its default, for configs/."""
  config = to_config_dict(Config())
  config.model = dataclasses.asdict(model)
  return config


def scale_phases(config: ml_collections.ConfigDict, ratio: float) -> None:
  """Multiplies the tokens of every phase of a run, in place."""
  for group, keys in (
    (config.optim, ('constant_tokens', 'decay_tokens', 'final_tokens')),
    (config.train, ('ramp_tokens', 'mtp_weight_tokens', 'bias_update_tokens')),
  ):
    for key in keys:
      group[key] = round(group[key] * ratio)


def shrink_run(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The run at laptop size: small model, short sequences, few steps."""
  config.model = dataclasses.asdict(
    shrink(ModelConfig(**config.model.to_dict()))
  )
  config.compute.remat = 'none'
  config.data.sequence_length = min(config.data.sequence_length, 32)
  config.data.batch_size = min(config.data.batch_size, 8)
  config.data.num_shards = min(config.data.num_shards, 4)
  config.optim.learning_rate = 1e-3
  config.optim.warmup_steps = 2
  batch_tokens = config.data.batch_size * config.data.sequence_length
  config.optim.constant_tokens = 12 * batch_tokens
  config.optim.decay_tokens = 0
  config.optim.final_tokens = 0
  config.train.steps = 20
  config.train.micro_batches = 1
  config.train.ramp_tokens = 0
  config.train.ramp_micro_batches = 1
  config.train.mtp_weight_tokens = 0
  config.train.bias_update_tokens = 0
  config.train.precision = 'float32'
  config.train.log_every = 1
  config.train.checkpoint_every = 10
  config.eval.every = 10
  config.eval.max_bytes = 4096
  config.eval.sample_every = 20
  config.eval.sample_tokens = 16
  return config


def variant(
  config: ml_collections.ConfigDict, arg: str
) -> ml_collections.ConfigDict:
  """Applies the variant that follows the colon of `--config=file.py:arg`.

  Raises:
    ConfigError: the variant is neither '' nor 'tiny'.
  """
  if arg:
    if arg != 'tiny':
      raise ConfigError(
        f'config variant={arg!r} is not one of tiny'
        + did_you_mean(arg, ('tiny',))
      )
    shrink_run(config)
  return config
