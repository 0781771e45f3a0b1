"""The model against Hugging Face transformers, on recorded logits.

The fixtures hold what transformers' own classes answered; how they are made is
in third_party/transformers. The names are mapped here once more, by hand, so
that a mistake in the library's own loader can't hide one in the model. What
else was recorded is in the files beside this one, which begin with its name.
"""

import dataclasses
import json
import pathlib
from typing import Any
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from reference import cases
from seekax.configuration.model import ModelConfig
from seekax.model import router
from seekax.model.parameters import abstract_weights
from seekax.model.transformer import Transformer
from seekax.ops import rotary

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures' / 'transformers'
CASES = (
  'v3',
  'v3_no_query_latent',
  'v3_no_groups',
  'v3_shared',
  'moonlight',
  'v2_lite',
  'v2',
  'llama',
)


@dataclasses.dataclass
class Fixture:
  """A recorded model in our words, and what transformers answered.

  Attributes:
    about: how it was made; the published config under 'config'.
    config: ours.
    params: ours.
    router_bias: ours.
    answers: 'tokens', 'logits', 'prompts', 'greedy' and so on.
  """

  about: dict[str, Any]
  config: ModelConfig
  params: Any
  router_bias: dict[str, np.ndarray]
  answers: dict[str, np.ndarray]


def read(name: str) -> Fixture:
  """A fixture, all of its published tensors used."""
  path = FIXTURES / f'{name}.safetensors'
  with safe_open(path, 'numpy') as file:
    about = json.loads(file.metadata()['about'])
  config, tensors = our_config(about['config']), load_file(path)
  router_bias = our_router_bias(tensors, config)
  params = our_params(tensors, config)
  left = [key for key in tensors if key.startswith(('model.', 'lm_head.'))]
  if left:
    raise AssertionError(f'{name}: no use for {left}')
  return Fixture(about, config, params, router_bias, tensors)


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
    mtp_depth=published.get('num_nextn_predict_layers', 0),
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
    yarn_beta_fast=rope.get('beta_fast', 32.0),
    yarn_beta_slow=rope.get('beta_slow', 1.0),
    yarn_mscale=rope.get('mscale', 1.0),
    yarn_mscale_all_dim=rope.get('mscale_all_dim', 1.0),
  )


def our_router_bias(tensors: dict, config: ModelConfig) -> dict:
  """router_bias from published names; takes tensors as it goes."""
  if not config.uses_router_bias:
    return {}
  name = 'model.layers.{}.mlp.gate.e_score_correction_bias'

  def biases(first, last):
    return np.stack([tensors.pop(name.format(i)) for i in range(first, last)])

  bias = {'layers': biases(config.num_plain_layers, config.num_layers)}
  if config.mtp_depth:
    last = config.num_layers + config.mtp_depth
    bias['mtp'] = biases(config.num_layers, last)
  return bias


def our_params(tensors: dict, config: ModelConfig) -> dict:
  """params from published names; takes tensors as it goes."""

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

  def mtp(depth):
    index = config.num_layers + depth
    name = f'model.layers.{index}'
    # Embedding and head are stored once more.
    for copy, original in (
      ('embed_tokens', params['embedding']['table']),
      ('shared_head.head', params['head'].T),
    ):
      np.testing.assert_array_equal(
        tensors.pop(f'{name}.{copy}.weight'), original
      )
    return {
      'embed_norm': scale(f'{name}.enorm'),
      'hidden_norm': scale(f'{name}.hnorm'),
      'project': kernel(f'{name}.eh_proj'),
      'block': layer(index),
      'final_norm': scale(f'{name}.shared_head.norm'),
    }

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
  for depth in range(config.mtp_depth):
    params[f'mtp_{depth}'] = mtp(depth)
  return params


def logits_of(config, params, router_bias, tokens_BL):
  model, variables = Transformer(config), {'params': params}
  positions_BL = np.broadcast_to(np.arange(tokens_BL.shape[1]), tokens_BL.shape)
  trunk = model.apply(variables, tokens_BL, positions_BL, None, router_bias)
  return model.apply(variables, trunk.hidden_BLD, method='logits')


def logits_error(fixture: Fixture) -> float:
  """Compiles anew, so that what a test has replaced is seen."""

  def compute(params, router_bias, tokens_BL):
    return logits_of(fixture.config, params, router_bias, tokens_BL)

  actual = cases.jit(compute)(
    fixture.params, fixture.router_bias, fixture.answers['tokens']
  )
  if actual.dtype != np.float32:
    raise AssertionError(actual.dtype)
  return cases.difference(actual, fixture.answers['logits'])


class AgainstTransformersTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_float32_logits_match_the_recorded_ones(self, name):
    fixture = read(name)
    ours = {'params': fixture.params, 'router_bias': fixture.router_bias}
    self.assertEqual(
      jax.tree.map(np.shape, ours),
      jax.tree.map(np.shape, abstract_weights(fixture.config).tree),
    )
    self.assertLess(logits_error(fixture), 1e-5)

  def test_fixtures_leave_nothing_neutral(self):
    for name in CASES:
      fixture = read(name)
      length = fixture.answers['tokens'].shape[1]
      if fixture.config.rope_scaling != 'none':
        self.assertGreater(length, fixture.config.rope_original_length)
      for path, leaf in jax.tree_util.tree_leaves_with_path(fixture.params):
        if path[-1].key == 'scale':
          self.assertGreater(leaf.std(), 0.1, jax.tree_util.keystr(path))
      for bias_NE in fixture.router_bias.values():
        self.assertLess(bias_NE.min(axis=1).max(), 0, name)
        self.assertGreater(bias_NE.max(axis=1).min(), 0, name)
        self.assertGreater(np.abs(bias_NE[0]).min(), 4)


def _without_m_squared(config):
  return config.qk_head_dim**-0.5


def _with_bias_in_the_gates(logits_TE, bias_E, config, right=router.route):
  routing = right(logits_TE, bias_E, config)
  biased_TE = routing.scores_TE + bias_E
  gates_TA = jnp.take_along_axis(biased_TE, routing.experts_TA, axis=1)
  gates_TA = gates_TA / gates_TA.sum(axis=1, keepdims=True)
  gates_TA = gates_TA * config.routed_scale
  return dataclasses.replace(routing, gates_TA=gates_TA)


def _zeros_outside_kept_groups(
  choice_TE, config, right=router.keep_best_groups
):
  kept_TE = right(choice_TE, config)
  return jnp.where(jnp.isinf(kept_TE), 0.0, kept_TE)


class MistakeTest(parameterized.TestCase):
  @parameterized.parameters(
    (rotary, 'softmax_scale', _without_m_squared),
    (router, 'route', _with_bias_in_the_gates),
    (router, 'keep_best_groups', _zeros_outside_kept_groups),
  )
  def test_recorded_logits_notice_a_mistake(self, module, name, mistake):
    with mock.patch.object(module, name, mistake):
      self.assertGreater(logits_error(read('v3')), 1e-2)


if __name__ == '__main__':
  absltest.main()
