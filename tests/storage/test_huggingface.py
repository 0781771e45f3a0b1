"""Laws of config.json: released ones are the presets, the rest is refused."""

import copy
import dataclasses
import json
import pathlib
import random
import time
from typing import Any

from absl.testing import absltest, parameterized

import published as folders
from seekax.configuration.model import ModelConfig
from seekax.configuration.presets import PRESETS
from seekax.storage import huggingface, names, published_rope, weights
from seekax.storage.manifest import StorageError
from seekax.storage.published_config import carry_fields, published_config

_YARN = {
  'type': 'yarn',
  'factor': 40,
  'original_max_position_embeddings': 4096,
  'beta_fast': 32,
  'beta_slow': 1,
  'mscale': 1.0,
  'mscale_all_dim': 1.0,
}
_AUTO_MAP = {
  'AutoConfig': 'configuration_deepseek.DeepseekV3Config',
  'AutoModelForCausalLM': 'modeling_deepseek.DeepseekV3ForCausalLM',
}
V3: dict[str, Any] = {
  'architectures': ['DeepseekV3ForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'auto_map': _AUTO_MAP,
  'bos_token_id': 0,
  'eos_token_id': 1,
  'ep_size': 1,
  'first_k_dense_replace': 3,
  'hidden_act': 'silu',
  'hidden_size': 7168,
  'initializer_range': 0.02,
  'intermediate_size': 18432,
  'kv_lora_rank': 512,
  'max_position_embeddings': 163840,
  'model_type': 'deepseek_v3',
  'moe_intermediate_size': 2048,
  'moe_layer_freq': 1,
  'n_group': 8,
  'n_routed_experts': 256,
  'n_shared_experts': 1,
  'norm_topk_prob': True,
  'num_attention_heads': 128,
  'num_experts_per_tok': 8,
  'num_hidden_layers': 61,
  'num_key_value_heads': 128,
  'num_nextn_predict_layers': 1,
  'q_lora_rank': 1536,
  'qk_nope_head_dim': 128,
  'qk_rope_head_dim': 64,
  'quantization_config': {
    'activation_scheme': 'dynamic',
    'fmt': 'e4m3',
    'quant_method': 'fp8',
    'weight_block_size': [128, 128],
  },
  'rms_norm_eps': 1e-06,
  'rope_scaling': _YARN,
  'rope_theta': 10000,
  'routed_scaling_factor': 2.5,
  'scoring_func': 'sigmoid',
  'tie_word_embeddings': False,
  'topk_group': 4,
  'topk_method': 'noaux_tc',
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.33.1',
  'use_cache': True,
  'v_head_dim': 128,
  'vocab_size': 129280,
}
_NO_FP8 = {k: v for k, v in V3.items() if k != 'quantization_config'}
V2 = _NO_FP8 | {
  'architectures': ['DeepseekV2ForCausalLM'],
  'aux_loss_alpha': 0.001,
  'first_k_dense_replace': 1,
  'hidden_size': 5120,
  'intermediate_size': 12288,
  'model_type': 'deepseek_v2',
  'moe_intermediate_size': 1536,
  'n_routed_experts': 160,
  'n_shared_experts': 2,
  'norm_topk_prob': False,
  'num_experts_per_tok': 6,
  'num_hidden_layers': 60,
  'pretraining_tp': 1,
  'routed_scaling_factor': 16.0,
  'scoring_func': 'softmax',
  'seq_aux': True,
  'topk_group': 3,
  'topk_method': 'group_limited_greedy',
  'vocab_size': 102400,
}
del V2['num_nextn_predict_layers']
V2_LITE = V2 | {
  'hidden_size': 2048,
  'intermediate_size': 10944,
  'moe_intermediate_size': 1408,
  'n_group': 1,
  'n_routed_experts': 64,
  'num_attention_heads': 16,
  'num_hidden_layers': 27,
  'num_key_value_heads': 16,
  'q_lora_rank': None,
  'rope_scaling': _YARN | {'mscale': 0.707, 'mscale_all_dim': 0.707},
  'routed_scaling_factor': 1.0,
  'topk_group': 1,
  'topk_method': 'greedy',
}
MOONLIGHT = _NO_FP8 | {
  'aux_loss_alpha': 0.001,
  'bos_token_id': 163584,
  'eos_token_id': 163586,
  'first_k_dense_replace': 1,
  'hidden_size': 2048,
  'intermediate_size': 11264,
  'max_position_embeddings': 8192,
  'moe_intermediate_size': 1408,
  'n_group': 1,
  'n_routed_experts': 64,
  'n_shared_experts': 2,
  'num_attention_heads': 16,
  'num_experts_per_tok': 6,
  'num_hidden_layers': 27,
  'num_key_value_heads': 16,
  'num_nextn_predict_layers': 0,
  'q_lora_rank': None,
  'rms_norm_eps': 1e-05,
  'rope_scaling': None,
  'rope_theta': 50000.0,
  'routed_scaling_factor': 2.446,
  'seq_aux': True,
  'topk_group': 1,
  'vocab_size': 163840,
}
KIMI_K2 = V3 | {
  'aux_loss_alpha': 0.001,
  'first_k_dense_replace': 1,
  'max_position_embeddings': 131072,
  'model_type': 'kimi_k2',
  'n_group': 1,
  'n_routed_experts': 384,
  'num_attention_heads': 64,
  'num_key_value_heads': 64,
  'num_nextn_predict_layers': 0,
  'rope_scaling': _YARN | {'factor': 32.0, 'beta_fast': 1.0, 'beta_slow': 1.0},
  'rope_theta': 50000.0,
  'routed_scaling_factor': 2.827,
  'seq_aux': True,
  'topk_group': 1,
  'vocab_size': 163840,
}
LLAMA_8B: dict[str, Any] = {
  'architectures': ['LlamaForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 128000,
  'eos_token_id': [128001, 128008, 128009],
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'initializer_range': 0.02,
  'intermediate_size': 14336,
  'max_position_embeddings': 131072,
  'mlp_bias': False,
  'model_type': 'llama',
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 8,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_scaling': {
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
  },
  'rope_theta': 500000.0,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
  'use_cache': True,
  'vocab_size': 128256,
}
LLAMA_70B = LLAMA_8B | {
  'hidden_size': 8192,
  'intermediate_size': 28672,
  'num_attention_heads': 64,
  'num_hidden_layers': 80,
}
LLAMA_405B = LLAMA_8B | {
  'hidden_size': 16384,
  'intermediate_size': 53248,
  'num_attention_heads': 128,
  'num_hidden_layers': 126,
}
RELEASED = {
  'v3_671b': V3,
  'v2': V2,
  'v2_lite': V2_LITE,
  'moonlight': MOONLIGHT,
  'kimi_k2': KIMI_K2,
  'llama3_8b': LLAMA_8B,
  'llama3_70b': LLAMA_70B,
  'llama3_405b': LLAMA_405B,
}


def read(config) -> ModelConfig:
  """The architecture of a config.json; checks what every reader checks."""
  model = huggingface.model_config(config, 'config.json')
  huggingface.quantization(config, 'config.json')
  return model


def used(model: ModelConfig) -> ModelConfig:
  """A dense model without what it has no use for: sizes of experts."""
  if model.uses_experts:
    return model
  default = ModelConfig()
  unused = ('num_dense_layers', 'expert_dim', 'num_experts')
  unused += ('num_shared_experts', 'router')
  unused += ('experts_per_token', 'num_expert_groups', 'num_kept_groups')
  unused += ('group_score', 'normalize_gates', 'routed_scale')
  return dataclasses.replace(
    model, **{name: getattr(default, name) for name in unused}
  )


def newer(config) -> dict:
  """The spelling of transformers 5."""
  config = copy.deepcopy(config)
  rope = config.pop('rope_scaling') or {'rope_type': 'default'}
  rope['rope_type'] = rope.pop('type', rope.get('rope_type'))
  config['rope_parameters'] = rope | {'rope_theta': config.pop('rope_theta')}
  config['dtype'] = config.pop('torch_dtype')
  if config['model_type'] != 'llama':
    config['qk_head_dim'] = 192
    config['head_dim'] = 64
    config['rope_interleave'] = True
  return config


class ReleasedTest(parameterized.TestCase):
  @parameterized.parameters(*RELEASED)
  def test_a_released_config_is_its_preset(self, name):
    preset = dataclasses.replace(PRESETS[name](), init_std=0.02)
    self.assertEqual(read(RELEASED[name]), preset)

  @parameterized.parameters(*RELEASED)
  def test_the_newer_spelling_is_the_same_model(self, name):
    config = newer(RELEASED[name])
    self.assertEqual(read(config), read(RELEASED[name]))
    if config['rope_parameters']['rope_type'] == 'default':
      del config['rope_parameters']['rope_type']
      self.assertEqual(read(config), read(RELEASED[name]))

  @parameterized.parameters(*RELEASED)
  def test_both_spellings_at_once_are_one_if_they_agree(self, name):
    config = RELEASED[name] | newer(RELEASED[name])
    self.assertEqual(read(config), read(RELEASED[name]))

  @parameterized.parameters(*PRESETS)
  def test_a_model_is_the_same_after_writing_and_reading(self, name):
    model = PRESETS[name]()
    for fp8 in (False, True):
      written = published_config(model, 'bfloat16', fp8, False)
      written = json.loads(json.dumps(written))
      self.assertEqual(used(read(written)), used(model))
      self.assertEqual(huggingface.quantization(written, ''), (fp8, False))
      self.assertEqual(written['torch_dtype'], 'bfloat16')

  @parameterized.parameters(*RELEASED)
  def test_what_is_written_says_what_was_released(self, name):
    released = RELEASED[name]
    written = published_config(
      read(released),
      'bfloat16',
      'quantization_config' in released,
      False,
    )
    if name == 'kimi_k2':  # The same code under another name.
      written['model_type'] = 'kimi_k2'
    different = {
      key: (written[key], released[key])
      for key in written.keys() & released.keys()
      if written[key] != released[key] and key != 'rope_scaling'
    }
    self.assertEqual(different, {})
    if released['rope_scaling']:
      self.assertEqual(
        written['rope_scaling'] | released['rope_scaling'],
        written['rope_scaling'],
      )
    carried = carry_fields(written, released)
    self.assertEqual(read(carried), read(released))
    dropped = released.keys() - carried.keys()
    self.assertContainsSubset(dropped, {'auto_map', 'transformers_version'})

  def test_other_sizes_are_the_same_after_writing_and_reading(self):
    small = folders.SMALL
    for model in (
      small,
      folders.V2,
      folders.LLAMA,
      dataclasses.replace(small, rope_layout='half', mtp_depth=3),
      dataclasses.replace(small, rope_scaling='none', rope_factor=40.0,
                          rope_original_length=4096, yarn_mscale=1.0,
                          yarn_mscale_all_dim=1.0),
      dataclasses.replace(small, num_dense_layers=0, normalize_gates=False),
      dataclasses.replace(folders.V2, num_expert_groups=1, num_kept_groups=1),
    ):  # fmt: skip
      written = published_config(model, 'float32', False, False)
      self.assertEqual(read(json.loads(json.dumps(written))), model)

  def test_a_dense_model_with_latents_is_the_same_but_for_its_experts(self):
    model = dataclasses.replace(
      folders.SMALL, ffn='dense', mtp_depth=0, num_dense_layers=3
    )
    written = published_config(model, 'float32', False, False)
    found = read(written)
    self.assertFalse(found.uses_experts)
    self.assertEqual(
      [slot.name for slot in names.slots(found)],
      [slot.name for slot in names.slots(model)],
    )

  @parameterized.parameters(
    ({'attention': 'gqa', 'num_kv_heads': 2}, 'ffn'),
    ({'rope_scaling': 'llama3'}, 'rope_scaling'),
    ({'router': 'softmax', 'group_score': 'max', 'mtp_depth': 0}, 'normalize'),
    ({'group_score': 'max'}, 'group_score'),
    ({'num_shared_experts': 0}, 'num_shared_experts'),
    ({'ffn': 'dense'}, 'mtp_depth'),
  )
  def test_a_model_without_published_form_is_refused(self, changes, word):
    model = dataclasses.replace(folders.MODEL, **changes)
    with self.assertRaisesRegex(StorageError, f'no published .*{word}'):
      published_config(model, 'float32', False, False)


class QuantizationTest(parameterized.TestCase):
  @parameterized.parameters(
    (None, (False, False)),
    ({'quant_method': 'fp8'}, (True, False)),
    (V3['quantization_config'], (True, False)),
    (V3['quantization_config'] | {'scale_fmt': 'float'}, (True, False)),
    (V3['quantization_config'] | {'scale_fmt': 'ue8m0'}, (True, True)),
    (
      V3['quantization_config'] | {'modules_to_not_convert': ['lm_head']},
      (True, False),
    ),
  )
  def test_blocks_of_fp8_are_known(self, found, expected):
    config = V3 | {'quantization_config': found}
    self.assertEqual(huggingface.quantization(config, ''), expected)
    written = published_config(read(V3), 'bfloat16', *expected)
    self.assertEqual(huggingface.quantization(written, ''), expected)

  def test_no_field_is_no_quantization(self):
    self.assertEqual(huggingface.quantization(V2, ''), (False, False))

  @parameterized.parameters(
    ({'quant_method': 'awq'}, "quant_method='awq'"),
    ({'quant_method': 'gptq', 'bits': 4}, "quant_method='gptq'"),
    ({'quant_method': None}, 'quant_method=None'),
    ({'weight_block_size': [64, 64]}, r'weight_block_size=\[64, 64\]'),
    ({'weight_block_size': [128]}, r'weight_block_size=\[128\]'),
    ({'weight_block_size': None}, 'weight_block_size=None'),
    ({'fmt': 'e5m2'}, "fmt='e5m2'"),
    ({'activation_scheme': 'static'}, "activation_scheme='static'"),
    ({'scale_fmt': 'ue4m3'}, "scale_fmt='ue4m3'"),
    ({'scale_fmt': []}, r'scale_fmt=\[\]'),
  )
  def test_another_quantization_is_refused_by_name(self, changes, message):
    found = V3['quantization_config'] | changes
    with self.assertRaisesRegex(StorageError, f'config.json: .*{message}'):
      read(V3 | {'quantization_config': found})

  @parameterized.parameters(({},), ([],), '', 'fp8', 0, False, True, (['fp8'],))
  def test_what_is_no_quantization_is_refused(self, found):
    with self.assertRaisesRegex(StorageError, 'quantization_config'):
      read(V3 | {'quantization_config': found})

  def test_no_method_is_no_quantization(self):
    found = dict(V3['quantization_config'])
    del found['quant_method']
    with self.assertRaisesRegex(StorageError, 'quant_method'):
      read(V3 | {'quantization_config': found})


_COUNTS = (
  'vocab_size',
  'hidden_size',
  'num_hidden_layers',
  'num_attention_heads',
  'intermediate_size',
  'max_position_embeddings',
  'kv_lora_rank',
  'q_lora_rank',
  'qk_nope_head_dim',
  'qk_rope_head_dim',
  'v_head_dim',
  'first_k_dense_replace',
  'n_routed_experts',
  'n_shared_experts',
  'num_experts_per_tok',
  'moe_intermediate_size',
  'n_group',
  'topk_group',
  'num_nextn_predict_layers',
)
_NUMBERS = (
  'rms_norm_eps',
  'initializer_range',
  'rope_theta',
  'routed_scaling_factor',
)
_NO_COUNT = (-1, '8', 'x', True, 8.0, 1.5, [8], {}, float('nan'), 10**400)
_NO_NUMBER = (-1.0, '1', 'x', True, [1.0], {}, None, float('nan'))
_NO_NUMBER += (float('inf'), 10**400, 1e300)


class RefusedTest(parameterized.TestCase):
  def refused(self, config, *words: str):
    with self.assertRaises(StorageError) as caught:
      read(config)
    message = str(caught.exception)
    self.assertLen(message.splitlines(), 1)
    self.assertLess(len(message), 600)
    self.assertStartsWith(message, 'config.json: ')
    for word in words:
      self.assertIn(word, message)

  @parameterized.parameters(
    'deepseek_v32', 'deepseek_v4', 'deepseek', 'qwen3', '', None, 3, [[]], [{}]
  )
  def test_another_architecture_is_refused(self, kind):
    self.refused(V3 | {'model_type': kind}, 'model_type=', 'known: deepseek_v3')

  def test_no_architecture_is_refused(self):
    config = dict(V3)
    del config['model_type']
    self.refused(config, 'model_type')

  @parameterized.parameters(
    ('tie_word_embeddings', True),
    ('attention_bias', True),
    ('mlp_bias', True),
    ('hidden_act', 'gelu'),
    ('hidden_act', None),
    ('moe_layer_freq', 2),
    ('moe_layer_freq', [0, 1]),
    ('sliding_window', 4096),
    ('index_topk', 2048),
    ('use_qk_norm', True),
    ('attn_output_gate', True),
    ('pretraining_tp', 2),
    ('partial_rotary_factor', 0.5),
    ('scoring_func', 'softmax'),
    ('scoring_func', 'sqrtsoftplus'),
    ('topk_method', 'greedy'),
    ('topk_method', 'group_limited_greedy'),
    ('topk_method', ['noaux_tc']),
    ('head_dim', 128),
    ('qk_head_dim', 128),
    ('num_key_value_heads', 8),
    ('rope_interleave', 'yes'),
    ('norm_topk_prob', 1),
  )
  def test_what_would_compute_something_else_is_refused(self, name, value):
    self.refused(V3 | {name: value}, f'{name}={value!r}')

  @parameterized.parameters(
    ('scoring_func', 'sigmoid'),
    ('topk_method', 'noaux_tc'),
    ('norm_topk_prob', True),
  )
  def test_v2_computes_otherwise_than_v3(self, name, value):
    self.refused(V2 | {name: value}, f'{name}={value!r}')

  @parameterized.parameters(
    ({'n_group': 7}, 'n_routed_experts=256 is not divisible by n_group=7'),
    ({'topk_group': 9}, 'topk_group=9 is above n_group=8'),
    ({'num_experts_per_tok': 129}, 'num_experts_per_tok=129 is above'),
    ({'n_group': 256, 'topk_group': 8}, 'groups of one expert'),
    ({'qk_rope_head_dim': 63}, 'qk_rope_head_dim=63 is odd'),
    ({'rope_theta': 1}, 'rope_theta=1.0 must be above 1'),
  )
  def test_sizes_that_contradict_each_other_are_refused(self, changes, message):
    self.refused(V3 | changes, message)

  @parameterized.parameters(
    ({'num_key_value_heads': 5}, 'not divisible by num_key_value_heads=5'),
    ({'num_key_value_heads': 0}, 'num_key_value_heads=0'),
    ({'num_attention_heads': 7}, 'hidden_size=4096'),
    ({'num_attention_heads': 0}, 'hidden_size=4096'),
    ({'num_attention_heads': 0, 'head_dim': None}, 'hidden_size=4096'),
    ({'head_dim': 0}, 'head_dim=0'),
    ({'num_attention_heads': 7, 'head_dim': None}, 'hidden_size=4096'),
  )
  def test_heads_that_do_not_fit_are_refused(self, changes, message):
    self.refused(LLAMA_8B | changes, message)

  def test_heads_that_are_not_told_follow_from_the_others(self):
    config = LLAMA_8B | {'head_dim': None, 'num_key_value_heads': None}
    model = read(config)
    self.assertEqual(model.rope_head_dim, 128)
    self.assertEqual(model.num_kv_heads, 32)
    self.assertEqual(read(LLAMA_8B | {'head_dim': 64}).rope_head_dim, 64)

  @parameterized.parameters(*_COUNTS)
  def test_what_is_no_count_is_refused_by_name(self, name):
    for value in _NO_COUNT:
      self.refused(V3 | {name: value}, f'{name}=')

  @parameterized.parameters(*_NUMBERS)
  def test_what_is_no_number_is_refused_by_name(self, name):
    for value in _NO_NUMBER:
      self.refused(V3 | {name: value}, f'{name}=')

  @parameterized.parameters(
    'factor', 'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim'
  )
  def test_a_rope_field_that_is_no_number_is_refused_by_name(self, name):
    for value in _NO_NUMBER:
      rope = _YARN | {name: value}
      self.refused(V3 | {'rope_scaling': rope}, f'{name}=')

  @parameterized.parameters(
    'model_type',
    'vocab_size',
    'hidden_size',
    'num_hidden_layers',
    'num_attention_heads',
    'intermediate_size',
    'kv_lora_rank',
    'qk_nope_head_dim',
    'qk_rope_head_dim',
    'v_head_dim',
    'first_k_dense_replace',
    'n_routed_experts',
    'num_experts_per_tok',
    'moe_intermediate_size',
    'n_group',
    'topk_group',
    'routed_scaling_factor',
  )
  def test_a_field_that_is_missing_is_named(self, name):
    config = {key: value for key, value in V3.items() if key != name}
    self.refused(config, name)

  @parameterized.parameters(
    ('type', 'linear'),
    ('type', 'dynamic'),
    ('type', 'longrope'),
    ('type', 'llama3'),
    ('type', ''),
    ('type', 7),
    ('type', ['yarn']),
    ('type', {}),
    ('rope_type', 'linear'),
    ('attention_factor', 0.7),
    ('truncate', False),
    ('partial_rotary_factor', 0.5),
    ('long_factor', [1.0, 2.0]),
    ('low_freq_factor', 1.0),
    ('fcator', 40),
    ('full_attention', {'rope_type': 'default'}),
    ('original_max_position_embeddings', 4096.5),
    ('original_max_position_embeddings', 0),
    ('rope_theta', 5000),
  )
  def test_another_rotary_scaling_is_refused_by_name(self, name, value):
    self.refused(V3 | {'rope_scaling': _YARN | {name: value}}, name)

  @parameterized.parameters('yarn', 'linear', 'dynamic')
  def test_llama_knows_no_other_scaling_than_its_own(self, kind):
    rope = LLAMA_8B['rope_scaling'] | {'rope_type': kind}
    self.refused(LLAMA_8B | {'rope_scaling': rope}, f'rope_type={kind!r}')

  @parameterized.parameters(
    (V3, 'factor'),
    (LLAMA_8B, 'factor'),
    (LLAMA_8B, 'low_freq_factor'),
    (LLAMA_8B, 'high_freq_factor'),
  )
  def test_a_rope_field_that_is_missing_is_named(self, config, name):
    rope = dict(config['rope_scaling'])
    del rope[name]
    self.refused(config | {'rope_scaling': rope}, f'{name} is missing')

  @parameterized.parameters(3, 'yarn', [[1]], True)
  def test_rope_fields_that_are_no_object_are_refused(self, value):
    for name in ('rope_scaling', 'rope_parameters'):
      self.refused(V3 | {name: value}, f'{name}=')

  def test_spellings_that_contradict_each_other_are_refused(self):
    rope = newer(V3)['rope_parameters']
    self.refused(V3 | {'rope_parameters': rope | {'factor': 32}}, 'factor=40')
    other = rope | {'rope_theta': 50000}
    self.refused(V3 | {'rope_parameters': other}, 'rope_theta=10000')
    other = {'rope_type': 'default', 'rope_theta': 10000}
    self.refused(V3 | {'rope_parameters': other}, "type='yarn'")

  def test_a_long_value_is_not_repeated_in_full(self):
    self.refused(V3 | {'hidden_act': 'x' * 10**6}, 'hidden_act=')
    self.refused(V3 | {'num_hidden_layers': [0] * 10**6}, 'num_hidden_layers=')
    rope = _YARN | {'k' * 10**6: 1}
    self.refused(V3 | {'rope_scaling': rope}, 'is not supported')


class ReadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'config.json'

  @parameterized.parameters(
    (b'', 'no valid JSON'),
    (b'{', 'no valid JSON'),
    (b'\xff{}', 'no valid JSON'),
    (b'[' * 100_000, 'no valid JSON'),
    (b'[]', 'no JSON object'),
    (b'"llama"', 'no JSON object'),
    (b'{"hidden_size": 1, "hidden_size": 2}', "lists 'hidden_size' twice"),
    (b'{"a": {"b": 1, "b": 2}}', "lists 'b' twice"),
    (b'{"a": ' + b'9' * 5000 + b'}', 'no valid JSON'),
    (b' ' * 4_000_001, '4,000,001 bytes are more than config.json may have'),
  )
  def test_what_is_no_config_is_refused(self, content, message):
    self.path.write_bytes(content)
    with self.assertRaisesRegex(StorageError, message) as caught:
      huggingface.read_config(self.path)
    self.assertIn(str(self.path), str(caught.exception))
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_a_missing_one_is_refused(self):
    with self.assertRaisesRegex(StorageError, 'can not be read: No such file'):
      huggingface.read_config(self.path)

  def test_auto_map_is_said_to_be_ignored_and_never_carried_on(self):
    self.path.write_text(json.dumps(V3))
    with self.assertLogs(level='WARNING') as logs:
      found = huggingface.read_config(self.path)
    self.assertLen(logs.output, 1)
    self.assertIn('auto_map is ignored', logs.output[0])
    made = published_config(read(found), 'bfloat16', True, False)
    carried = carry_fields(made, found)
    self.assertNotIn('auto_map', carried)
    self.assertEqual(carried['bos_token_id'], 0)

  def test_a_config_without_auto_map_is_read_in_silence(self):
    self.path.write_text(json.dumps(LLAMA_8B))
    with self.assertNoLogs(level='INFO'):
      huggingface.read_config(self.path)


_JUNK = (None, True, False, 0, 1, -1, 2, 3, 7, 8, 64, 65, 10**9, 10**400)
_JUNK += (0.0, -0.5, 1.5, 1e308, float('nan'), float('inf'), '', 'yarn', '8')
_JUNK += ('\x00', '\ud800', 'a\nb', [], [1], {}, {'type': 'yarn'}, [[]])


def mutate(draw: random.Random, config: dict) -> None:
  """Changes one field in place, at any depth: dropped, replaced, added."""
  inner = [config] + [v for v in config.values() if isinstance(v, dict)]
  target = draw.choice(inner)
  name = draw.choice([*target, 'x', 'rope_type', 'rope_parameters', 'head_dim'])
  action = draw.randrange(4)
  if action == 0:
    target.pop(name, None)
  elif action == 1 and isinstance(target.get(name), int):
    target[name] = target[name] + draw.choice((-1, 1, 7))
  elif action == 2:
    target[name] = copy.deepcopy(draw.choice(list(config.values()) or [0]))
  else:
    target[name] = copy.deepcopy(draw.choice(_JUNK))


class FuzzTest(absltest.TestCase):
  def test_any_config_is_a_model_or_refused_in_one_line(self):
    draw = random.Random(0)
    start, accepted = time.process_time(), 0
    for number in range(3000):
      base = RELEASED[draw.choice(list(RELEASED))]
      config = copy.deepcopy(base if draw.random() < 0.7 else newer(base))
      for _ in range(draw.choice((1, 1, 2, 5))):
        mutate(draw, config)
      # As a file: NaN and infinity pass through JSON too.
      config = json.loads(json.dumps(config))
      try:
        model = read(config)
      except StorageError as error:
        self.assertLen(str(error).splitlines(), 1, msg=config)
        str(error).encode()
        continue
      self.assertIsInstance(model, ModelConfig)
      accepted += 1
      self.check_written(model)
      if number % 20 == 0:
        # Whatever it describes, an empty folder is found to lack it at once.
        self.assertNotEmpty(weights.compare({}, names.slots(model)).missing)
    self.assertBetween(accepted, 300, 2700)
    self.assertLess(time.process_time() - start, 20)

  def check_written(self, model):
    try:
      written = published_config(model, 'float32', False, False)
    except StorageError as error:
      self.assertIn('no published architecture', str(error))
      return
    self.assertEqual(used(read(written)), used(model))


class GroupsTest(parameterized.TestCase):
  @parameterized.product(
    name=('n_group', 'topk_group'), base=('v3_671b', 'v2', 'v2_lite')
  )
  def test_no_groups_at_all_are_refused(self, name, base):
    for zero in (0, False):
      with self.assertRaisesRegex(StorageError, f'{name}=.*a (whole )?number'):
        read(RELEASED[base] | {name: zero})

  def test_null_is_how_a_greedy_router_says_that_there_are_none(self):
    expected = read(RELEASED['v2_lite'])
    null = {'n_group': None, 'topk_group': None}
    self.assertEqual(read(RELEASED['v2_lite'] | null), expected)
    absent = {k: v for k, v in RELEASED['v2_lite'].items() if k not in null}
    self.assertEqual(read(absent), expected)
    self.assertEqual(
      (expected.num_expert_groups, expected.num_kept_groups), (1, 1)
    )


class RotaryNoteTest(parameterized.TestCase):
  @parameterized.parameters(*RELEASED)
  def test_of_every_release_there_is_nothing_to_say(self, name):
    for config in (RELEASED[name], newer(RELEASED[name])):
      self.assertEqual(published_rope.rotary_note(config), '')

  @parameterized.parameters(
    ({'mscale': 0.5}, 'mscale 0.5 and mscale_all_dim 1.0'),
    ({'mscale_all_dim': None}, 'mscale 1.0 and mscale_all_dim absent'),
    ({'mscale': None, 'mscale_all_dim': None}, 'mscale absent and'),
  )
  def test_factors_that_are_unequal_or_absent_are_named(self, changed, words):
    for config in (RELEASED['v3_671b'], newer(RELEASED['v3_671b'])):
      config = copy.deepcopy(config)
      name = (
        'rope_parameters' if 'rope_parameters' in config else 'rope_scaling'
      )
      config[name] |= changed
      self.assertIn(words, published_rope.rotary_note(config))


if __name__ == '__main__':
  absltest.main()
