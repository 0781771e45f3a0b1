"""The oracle's models: toy widths, random weights that leave nothing neutral.

Norms are not one, selection biases have both signs, widths differ from one
another, and sequences are longer than the context before its extension.
"""

import dataclasses

import numpy as np
import torch
from transformers import (
  DeepseekV2Config,
  DeepseekV2ForCausalLM,
  DeepseekV3Config,
  DeepseekV3ForCausalLM,
  LlamaConfig,
  LlamaForCausalLM,
)

VOCABULARY = 96
ORIGINAL_LENGTH = 32
# Selection biases: in the first expert layer as large as in the released model
# and of either sign, in the others small beside the affinities, like their
# spread in both.
LARGE_BIAS, LARGE_BIASES_ABOVE_ZERO, BIAS_SPREAD = 4.7, 5, 0.3
# Size of embeddings and latents, at which the epsilons of their norms show.
SMALL = 0.3

WIDTHS = {
  'vocab_size': VOCABULARY,
  'hidden_size': 24,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'intermediate_size': 40,
  'max_position_embeddings': 128,
  'tie_word_embeddings': False,
}
LATENT = WIDTHS | {
  'kv_lora_rank': 14,
  'qk_nope_head_dim': 12,
  'qk_rope_head_dim': 16,
  'v_head_dim': 10,
  'first_k_dense_replace': 1,
  'n_routed_experts': 16,
  'num_experts_per_tok': 4,
  'moe_intermediate_size': 8,
}


def yarn(mscale: float, mscale_all_dim: float) -> dict:
  """YaRN; at this base the ramp has a slope, not a step."""
  return {
    'rope_type': 'yarn',
    'rope_theta': 100.0,
    'factor': 4.0,
    'original_max_position_embeddings': ORIGINAL_LENGTH,
    'beta_fast': 32.0,
    'beta_slow': 1.0,
    'mscale': mscale,
    'mscale_all_dim': mscale_all_dim,
  }


V3 = LATENT | {
  'num_key_value_heads': 4,
  'q_lora_rank': 18,
  'n_shared_experts': 1,
  'n_group': 4,
  'topk_group': 2,
  'routed_scaling_factor': 2.5,
  'num_nextn_predict_layers': 0,
  'rope_parameters': yarn(1.0, 1.0),
}
# transformers' latent norms keep an eps of 1e-6 of their own.
MOONLIGHT = V3 | {
  'q_lora_rank': None,
  'n_shared_experts': 2,
  'n_group': 1,
  'topk_group': 1,
  'routed_scaling_factor': 2.446,
  'rms_norm_eps': 1e-5,
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 50000.0},
}
V2_LITE = LATENT | {
  'q_lora_rank': None,
  'n_shared_experts': 2,
  'topk_method': 'greedy',
  'n_group': 1,
  'topk_group': 1,
  'routed_scaling_factor': 1.0,
  'rope_parameters': yarn(0.707, 0.707),
}
# Two different mscales: their ratio is on the rotary tables.
V2 = V2_LITE | {
  'q_lora_rank': 18,
  'topk_method': 'group_limited_greedy',
  'n_group': 8,
  'topk_group': 3,
  'routed_scaling_factor': 4.0,
  'rope_parameters': yarn(1.2, 0.8),
}
# Whole blocks of 128 x 128, so that transformers can expand them from FP8.
V3_BLOCKS = V3 | {
  'hidden_size': 256,
  'num_attention_heads': 2,
  'num_key_value_heads': 2,
  'intermediate_size': 384,
  'q_lora_rank': 128,
  'kv_lora_rank': 128,
  'qk_nope_head_dim': 64,
  'qk_rope_head_dim': 128,
  'v_head_dim': 64,
  'n_routed_experts': 8,
  'num_experts_per_tok': 3,
  'moe_intermediate_size': 128,
}
LLAMA = WIDTHS | {
  'num_key_value_heads': 2,
  'head_dim': 16,
  'rms_norm_eps': 1e-5,
  'rope_parameters': {
    'rope_type': 'llama3',
    'rope_theta': 100.0,
    'factor': 4.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': ORIGINAL_LENGTH,
  },
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One model.

  Attributes:
    config: of transformers.
    kind: its model class.
    seed: of weights and tokens.
    shard_size: above it save_pretrained cuts the weights.
    routes: whether its routers are asked.
    trains: whether its gradients and losses are asked.
    has_mtp: whether its folder holds an MTP layer, which is asked too.
    recorded: whether the tests have it as a fixture.
  """

  config: object
  kind: type
  seed: int
  shard_size: str = '1GB'
  routes: bool = False
  trains: bool = False
  has_mtp: bool = False
  recorded: bool = True


def _v3(values: dict, seed: int, **options) -> Case:
  return Case(
    DeepseekV3Config(**values), DeepseekV3ForCausalLM, seed, **options
  )


def _v2(values: dict, seed: int, **options) -> Case:
  return Case(
    DeepseekV2Config(**values), DeepseekV2ForCausalLM, seed, **options
  )


CASES = {
  'v3': _v3(V3, 4, routes=True, trains=True),
  'v3_no_query_latent': _v3(V3 | {'q_lora_rank': None}, 5),
  'v3_no_groups': _v3(V3 | {'n_group': 1, 'topk_group': 1}, 5, routes=True),
  'v3_shared': _v3(
    V3 | {'n_shared_experts': 3, 'rope_parameters': yarn(0.8, 1.2)}, 3
  ),
  'v3_mtp': _v3(V3 | {'num_nextn_predict_layers': 1}, 4, has_mtp=True),
  'v3_blocks': _v3(V3_BLOCKS, 4, recorded=False),
  'moonlight': _v3(MOONLIGHT, 5),
  'v2_lite': _v2(V2_LITE, 2, routes=True),
  'v2': _v2(V2, 5, routes=True, shard_size='60KB'),
  'llama': Case(LlamaConfig(**LLAMA), LlamaForCausalLM, 4),
}


def random_model(case: Case, draw: np.random.Generator) -> torch.nn.Module:
  """The case's model in float32, by the slow plain implementations."""
  model = case.kind._from_config(
    case.config, attn_implementation='eager', experts_implementation='eager'
  ).eval()
  # Or generate() stops at an end of text.
  model.generation_config.eos_token_id = None
  perturb(model, draw)
  return model


@torch.no_grad()
def perturb(model: torch.nn.Module, draw: np.random.Generator) -> None:
  """Fills a model with random weights of a size that suits their kind."""
  config = model.config
  for name, weight in sorted(model.state_dict().items()):
    noise = draw.standard_normal(tuple(weight.shape))
    if name.endswith('e_score_correction_bias'):
      # Mostly negative: few of a kept group are above a mask of zeros.
      value = BIAS_SPREAD * (2 * np.linspace(0, 1, len(noise)) ** 3 - 1)
      value = draw.permutation(value)
      layer = int(name.split('.layers.')[1].split('.')[0])
      if layer == config.first_k_dense_replace:
        above = np.arange(len(value)) < LARGE_BIASES_ABOVE_ZERO
        value += LARGE_BIAS * np.where(draw.permutation(above), 1, -1)
    elif 'norm' in name:
      value = 1 + 0.3 * noise
    elif 'embed_tokens' in name:
      value = SMALL * noise
    else:
      value = noise / np.sqrt(noise.shape[-1])
    if 'kv_a_proj' in name:
      value[: config.kv_lora_rank] *= SMALL
    weight.copy_(torch.from_numpy(np.float32(value)))
