"""Records what transformers' own models answer, as fixtures for the tests.

Run it in an environment of its own, see README.md beside it. Every case is a
model at toy widths with random weights that leave nothing neutral: norms are
not one, selection biases have both signs, widths differ from one another, and
sequences are longer than the context before its extension. A fixture holds

  metadata 'config'   the config as JSON, with the version of transformers
  model.*, lm_head.*  weights under their published names, float32
  tokens              int32 [batch, length]
  logits              float32 [batch, length, vocabulary]

The same versions write the same bytes.
"""

import copy
import json
import pathlib
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file
import torch
from transformers import (
  DeepseekV2Config,
  DeepseekV2ForCausalLM,
  DeepseekV3Config,
  DeepseekV3ForCausalLM,
  LlamaConfig,
  LlamaForCausalLM,
)
from transformers.utils import logging

FOLDER = (
  pathlib.Path(__file__).resolve().parents[2] / 'tests/fixtures/transformers'
)
VOCABULARY, BATCH, LENGTH = 96, 2, 96
ORIGINAL_LENGTH = 32
# Spread of the selection bias in the first expert layer and in the others: as
# in the released model, and small enough to compete with the affinities.
BIAS_SPREADS = (5.0, 0.3)
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


def cases() -> dict[str, tuple[type, object]]:
  """Model class and config by the name of the fixture."""
  v3 = DeepseekV3Config(
    **LATENT,
    num_key_value_heads=4,
    q_lora_rank=18,
    n_shared_experts=1,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    num_nextn_predict_layers=0,
    rope_parameters=yarn(1.0, 1.0),
  )
  # transformers' latent norms keep an eps of 1e-6 of their own.
  moonlight = DeepseekV3Config(
    **LATENT,
    num_key_value_heads=4,
    q_lora_rank=None,
    n_shared_experts=2,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=2.446,
    num_nextn_predict_layers=0,
    rms_norm_eps=1e-5,
    rope_parameters={'rope_type': 'default', 'rope_theta': 50000.0},
  )
  v2_lite = DeepseekV2Config(
    **LATENT,
    q_lora_rank=None,
    n_shared_experts=2,
    topk_method='greedy',
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
    rope_parameters=yarn(0.707, 0.707),
  )
  # Two different mscales: their ratio is on the rotary tables.
  v2 = DeepseekV2Config(
    **LATENT,
    q_lora_rank=18,
    n_shared_experts=2,
    topk_method='group_limited_greedy',
    n_group=8,
    topk_group=3,
    routed_scaling_factor=4.0,
    rope_parameters=yarn(1.2, 0.8),
  )
  llama = LlamaConfig(
    **WIDTHS,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_parameters={
      'rope_type': 'llama3',
      'rope_theta': 100.0,
      'factor': 4.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': ORIGINAL_LENGTH,
    },
  )
  return {
    'v3': (DeepseekV3ForCausalLM, v3),
    'moonlight': (DeepseekV3ForCausalLM, moonlight),
    'v2_lite': (DeepseekV2ForCausalLM, v2_lite),
    'v2': (DeepseekV2ForCausalLM, v2),
    'llama': (LlamaForCausalLM, llama),
  }


def perturb(model: torch.nn.Module, config, draw: np.random.Generator) -> None:
  """Random weights that leave nothing neutral."""
  for name, weight in sorted(model.state_dict().items()):
    noise = draw.standard_normal(tuple(weight.shape))
    if name.endswith('e_score_correction_bias'):
      layer = int(name.split('.layers.')[1].split('.')[0])
      first = layer == config.first_k_dense_replace
      # Mostly negative: few of a kept group are above a mask of zeros.
      value = 2 * np.linspace(0, 1, len(noise)) ** 3 - 1
      value = BIAS_SPREADS[0 if first else 1] * draw.permutation(value)
    elif 'norm' in name:
      value = 1 + 0.3 * noise
    elif 'embed_tokens' in name:
      value = SMALL * noise
    else:
      value = noise / np.sqrt(noise.shape[-1])
    if 'kv_a_proj' in name:
      value[: config.kv_lora_rank] *= SMALL
    weight.copy_(torch.from_numpy(np.float32(value)))


def published(model: torch.nn.Module) -> tuple[dict, dict[str, np.ndarray]]:
  """The config and the weights as save_pretrained publishes them."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    config = pathlib.Path(folder, 'config.json').read_text(encoding='utf-8')
    weights = load_file(pathlib.Path(folder, 'model.safetensors'))
  # Defaults included, which config.json leaves out.
  return model.config.to_dict() | json.loads(config), weights


def record(name: str, kind: type, config, seed: int) -> None:
  """Writes one fixture."""
  draw = np.random.default_rng(seed)
  model = kind._from_config(
    config, attn_implementation='eager', experts_implementation='eager'
  ).eval()
  perturb(model, config, draw)
  tokens = draw.integers(VOCABULARY, size=(BATCH, LENGTH), dtype=np.int32)
  inputs = torch.from_numpy(tokens).long()
  logits = model(inputs, use_cache=False).logits
  # How far float32 is from the truth; more says that two experts tie.
  double = copy.deepcopy(model).double()(inputs, use_cache=False).logits
  drift = ((logits - double).abs().max() / double.abs().max()).item()
  assert drift < 5e-6, f'{name}: {drift:.1e}; take another seed'
  metadata, tensors = published(model)
  tensors |= {'tokens': tokens, 'logits': logits.numpy()}
  path = FOLDER / f'{name}.safetensors'
  text = json.dumps(metadata, sort_keys=True)
  save_file(tensors, path, metadata={'config': text})
  print(f'{path.name}: {path.stat().st_size} bytes, {drift:.1e} from float64')


def main() -> None:
  logging.disable_progress_bar()
  torch.set_num_threads(1)
  torch.use_deterministic_algorithms(True)
  FOLDER.mkdir(parents=True, exist_ok=True)
  with torch.no_grad():
    for seed, (name, (kind, config)) in enumerate(cases().items()):
      record(name, kind, config, seed)


if __name__ == '__main__':
  main()
