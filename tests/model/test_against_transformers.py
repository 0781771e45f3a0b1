"""The model against Hugging Face transformers, on recorded logits.

The fixtures hold what transformers' own classes answered; how they are made is
in third_party/transformers. The names are mapped here once more, by hand, so
that a mistake in the library's own loader can't hide one in the model.
"""

import functools
import json
import pathlib

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import cases
from safetensors import safe_open
from safetensors.numpy import load_file

from seekax.config import ModelConfig
from seekax.model.parameters import abstract_weights
from seekax.model.transformer import Transformer

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures' / 'transformers'
CASES = ('v3', 'moonlight', 'v2_lite', 'v2', 'llama')


def read(name: str) -> tuple[dict, dict[str, np.ndarray]]:
  """The published config and all tensors of a fixture."""
  path = FIXTURES / f'{name}.safetensors'
  with safe_open(path, 'numpy') as file:
    config = json.loads(file.metadata()['config'])
  return config, load_file(path)


def our_config(published: dict) -> ModelConfig:
  """The published config in our words."""
  rope = published['rope_parameters']
  kind = published['model_type']
  shared = dict(
    vocab_size=published['vocab_size'],
    embed_dim=published['hidden_size'],
    num_layers=published['num_hidden_layers'],
    context_length=published['max_position_embeddings'],
    num_heads=published['num_attention_heads'],
    mlp_dim=published['intermediate_size'],
    mtp_depth=0,
    norm_eps=published['rms_norm_eps'],
    rope_theta=rope['rope_theta'],
    rope_scaling={'default': 'none'}.get(rope['rope_type'], rope['rope_type']),
    rope_factor=rope.get('factor', 1.0),
    rope_original_length=rope.get('original_max_position_embeddings', 1),
  )
  if kind == 'llama':
    return ModelConfig(
      **shared,
      num_dense_layers=0,
      attention='gqa',
      num_kv_heads=published['num_key_value_heads'],
      query_latent_dim=0,
      nope_head_dim=0,
      rope_head_dim=published['head_dim'],
      value_head_dim=published['head_dim'],
      ffn='dense',
      rope_layout='half',
      llama3_low_freq_factor=rope['low_freq_factor'],
      llama3_high_freq_factor=rope['high_freq_factor'],
    )
  return ModelConfig(
    **shared,
    num_dense_layers=published['first_k_dense_replace'],
    query_latent_dim=published['q_lora_rank'] or 0,
    kv_latent_dim=published['kv_lora_rank'],
    nope_head_dim=published['qk_nope_head_dim'],
    rope_head_dim=published['qk_rope_head_dim'],
    value_head_dim=published['v_head_dim'],
    expert_dim=published['moe_intermediate_size'],
    num_experts=published['n_routed_experts'],
    num_shared_experts=published['n_shared_experts'],
    experts_per_token=published['num_experts_per_tok'],
    num_expert_groups=published['n_group'],
    num_kept_groups=published['topk_group'],
    router='sigmoid' if kind == 'deepseek_v3' else 'softmax',
    group_score='top2' if kind == 'deepseek_v3' else 'max',
    normalize_gates=published['norm_topk_prob'],
    routed_scale=published['routed_scaling_factor'],
    # transformers never hands its latent norms the config's epsilon.
    latent_norm_eps=1e-6,
    yarn_beta_fast=rope.get('beta_fast', 32.0),
    yarn_beta_slow=rope.get('beta_slow', 1.0),
    yarn_mscale=rope.get('mscale', 1.0),
    yarn_mscale_all_dim=rope.get('mscale_all_dim', 1.0),
  )


def our_weights(tensors: dict, config: ModelConfig) -> tuple[dict, dict]:
  """(params, router_bias) from published names; takes tensors as it goes."""

  def kernel(name):
    return tensors.pop(f'{name}.weight').T

  def scale(name):
    return {'scale': tensors.pop(f'{name}.weight')}

  def swiglu(name):
    return {
      part: kernel(f'{name}.{part}_proj') for part in ('gate', 'up', 'down')
    }

  def per_head(name, heads):
    flat = kernel(name)
    return flat.reshape(flat.shape[0], heads, -1)

  def attention(name):
    out = kernel(f'{name}.o_proj')
    tree = {'out': out.reshape(config.num_heads, -1, config.embed_dim)}
    if config.attention == 'gqa':
      tree['query'] = per_head(f'{name}.q_proj', config.num_heads)
      tree['key'] = per_head(f'{name}.k_proj', config.num_kv_heads)
      tree['value'] = per_head(f'{name}.v_proj', config.num_kv_heads)
      return tree
    query = 'q_proj'
    if config.query_latent_dim:
      query = 'q_b_proj'
      tree['query_down'] = kernel(f'{name}.q_a_proj')
      tree['query_norm'] = scale(f'{name}.q_a_layernorm')
    tree['query_up'] = per_head(f'{name}.{query}', config.num_heads)
    tree['kv_down'] = kernel(f'{name}.kv_a_proj_with_mqa')
    tree['kv_norm'] = scale(f'{name}.kv_a_layernorm')
    tree['kv_up'] = per_head(f'{name}.kv_b_proj', config.num_heads)
    return tree

  def experts(name):
    routed = [swiglu(f'{name}.experts.{e}') for e in range(config.num_experts)]
    return stack(routed) | {
      'router': {'kernel': kernel(f'{name}.gate')},
      'shared': swiglu(f'{name}.shared_experts'),
    }

  def layer(index):
    name = f'model.layers.{index}'
    tree = {
      'attention_norm': scale(f'{name}.input_layernorm'),
      'attention': attention(f'{name}.self_attn'),
      'ffn_norm': scale(f'{name}.post_attention_layernorm'),
    }
    if index < config.num_plain_layers:
      return tree | {'mlp': swiglu(f'{name}.mlp')}
    return tree | {'experts': experts(f'{name}.mlp')}

  def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

  params = {
    'embedding': {'table': tensors.pop('model.embed_tokens.weight')},
    'final_norm': scale('model.norm'),
    'head': kernel('lm_head'),
    'dense_layers': stack([layer(i) for i in range(config.num_plain_layers)]),
  }
  indices = range(config.num_plain_layers, config.num_layers)
  if indices:
    params['expert_layers'] = stack([layer(i) for i in indices])
  if not config.uses_router_bias:
    return params, {}
  bias = 'model.layers.{}.mlp.gate.e_score_correction_bias'
  return params, {
    'layers': np.stack([tensors.pop(bias.format(i)) for i in indices])
  }


@functools.partial(cases.jit, static_argnums=0)
def logits_of(config, params, router_bias, tokens_BL):
  model, variables = Transformer(config), {'params': params}
  positions_BL = np.broadcast_to(np.arange(tokens_BL.shape[1]), tokens_BL.shape)
  trunk = model.apply(variables, tokens_BL, positions_BL, None, router_bias)
  return model.apply(variables, trunk.hidden_BLD, method='logits')


class AgainstTransformersTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_float32_logits_match_the_recorded_ones(self, name):
    published, tensors = read(name)
    config = our_config(published)
    tokens_BL, expected = tensors.pop('tokens'), tensors.pop('logits')
    params, router_bias = our_weights(tensors, config)
    self.assertEmpty(tensors, msg='published tensors that we have no use for')
    ours = {'params': params, 'router_bias': router_bias}
    self.assertEqual(
      jax.tree.map(np.shape, ours),
      jax.tree.map(np.shape, abstract_weights(config)),
    )
    actual = logits_of(config, params, router_bias, tokens_BL)
    self.assertEqual(actual.dtype, np.float32)
    self.assertLess(cases.difference(actual, expected), 1e-5)

  def test_fixtures_leave_nothing_neutral(self):
    for name in CASES:
      published, tensors = read(name)
      rope = published['rope_parameters']
      length = tensors['tokens'].shape[1]
      self.assertGreater(
        length, rope.get('original_max_position_embeddings', 0)
      )
      for key, value in tensors.items():
        if 'norm' in key:
          self.assertGreater(value.std(), 0.1, msg=key)
        if key.endswith('bias'):
          self.assertLess(value.min(), 0, msg=key)
          self.assertGreater(value.max(), 0, msg=key)


if __name__ == '__main__':
  absltest.main()
