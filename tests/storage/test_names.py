"""Laws of published names: the released index, and a bijection of values."""

from collections import Counter
import dataclasses
import math

from absl.testing import absltest, parameterized
import jax
import numpy as np

import published
from seekax.configuration.model import ModelConfig
from seekax.configuration.presets import PRESETS
from seekax.model.parameters import abstract_weights
from seekax.planning.parameters import count_parameters
from seekax.storage import fp8, names

_ITEMSIZE = {'FP8': 1, 'bf16': 2, 'F32': 4}
Index = dict[str, tuple[tuple[int, ...], str]]


def index_of(config: ModelConfig, layers=None) -> Index:
  """(shape, dtype) by name, scales included, as our table has it."""
  found: Index = {}
  for slot in names.slots(config):
    assert slot.name not in found, slot.name
    dtype = 'FP8' if slot.in_fp8 else 'F32' if slot.is_bias else 'bf16'
    found[slot.name] = (slot.shape, dtype)
    if slot.in_fp8:
      found[f'{slot.name}_scale_inv'] = (fp8.scale_shape(slot.shape), 'F32')
  if layers is None:
    return found
  wanted = tuple(f'model.layers.{layer}.' for layer in layers)
  return {
    name: value
    for name, value in found.items()
    if name.startswith(wanted) or '.layers.' not in name
  }


def released_v3() -> Index:
  """The released index of DeepSeek-V3, spelled out from its description."""
  index: Index = {}

  def put(name, *shape, dtype='bf16'):
    index[name] = (shape, dtype)
    if dtype == 'FP8':
      blocks = tuple(-(-size // 128) for size in shape)
      index[f'{name}_scale_inv'] = (blocks, 'F32')

  def swiglu(prefix, hidden):
    put(f'{prefix}.gate_proj.weight', hidden, 7168, dtype='FP8')
    put(f'{prefix}.up_proj.weight', hidden, 7168, dtype='FP8')
    put(f'{prefix}.down_proj.weight', 7168, hidden, dtype='FP8')

  put('model.embed_tokens.weight', 129280, 7168)
  put('model.norm.weight', 7168)
  put('lm_head.weight', 129280, 7168)
  for layer in range(62):
    at = f'model.layers.{layer}'
    put(f'{at}.self_attn.q_a_proj.weight', 1536, 7168, dtype='FP8')
    put(f'{at}.self_attn.q_a_layernorm.weight', 1536)
    put(f'{at}.self_attn.q_b_proj.weight', 24576, 1536, dtype='FP8')
    put(f'{at}.self_attn.kv_a_proj_with_mqa.weight', 576, 7168, dtype='FP8')
    put(f'{at}.self_attn.kv_a_layernorm.weight', 512)
    put(f'{at}.self_attn.kv_b_proj.weight', 32768, 512, dtype='FP8')
    put(f'{at}.self_attn.o_proj.weight', 7168, 16384, dtype='FP8')
    put(f'{at}.input_layernorm.weight', 7168)
    put(f'{at}.post_attention_layernorm.weight', 7168)
    if layer < 3:
      swiglu(f'{at}.mlp', 18432)
      continue
    put(f'{at}.mlp.gate.weight', 256, 7168)
    put(f'{at}.mlp.gate.e_score_correction_bias', 256, dtype='F32')
    for expert in range(256):
      swiglu(f'{at}.mlp.experts.{expert}', 2048)
    swiglu(f'{at}.mlp.shared_experts', 2048)
  put('model.layers.61.embed_tokens.weight', 129280, 7168)
  put('model.layers.61.shared_head.head.weight', 129280, 7168)
  put('model.layers.61.enorm.weight', 7168)
  put('model.layers.61.hnorm.weight', 7168)
  put('model.layers.61.shared_head.norm.weight', 7168)
  put('model.layers.61.eh_proj.weight', 7168, 14336)
  return index


class ReleasedIndexTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.index = index_of(PRESETS['v3_671b']())

  def test_every_name_shape_and_dtype_is_the_released_one(self):
    self.assertEqual(self.index, released_v3())

  def test_the_totals_are_the_released_ones(self):
    weights = {
      name: about
      for name, about in self.index.items()
      if not name.endswith('_scale_inv')
    }
    self.assertLen(weights, 46_183)
    self.assertLen(self.index, 91_991)
    self.assertEqual(
      Counter(dtype for _, dtype in weights.values()),
      {'FP8': 45_808, 'F32': 59, 'bf16': 316},
    )
    values = sum(math.prod(shape) for shape, _ in weights.values())
    self.assertEqual(values, 684_489_845_504)
    total = sum(
      math.prod(shape) * _ITEMSIZE[dtype]
      for shape, dtype in self.index.values()
    )
    self.assertEqual(total, 688_574_839_360)

  def test_the_last_block_of_kv_a_proj_is_half(self):
    name = 'model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv'
    self.assertEqual(self.index[name], ((5, 56), 'F32'))

  def test_layers_come_in_order_and_the_mtp_layer_last(self):
    layers = [
      int(name.split('.')[2])
      for name in self.index
      if name.startswith('model.layers.')
    ]
    self.assertEqual(layers, sorted(layers))
    self.assertEqual(layers[-1], 61)


def _swiglu(prefix, width, hidden):
  return {
    f'{prefix}.gate_proj.weight': (hidden, width),
    f'{prefix}.up_proj.weight': (hidden, width),
    f'{prefix}.down_proj.weight': (width, hidden),
  }


def _deepseek(
  width, vocab, heads, latent, dense, expert, experts, shared, bias
):
  """Shapes of layers 0 (dense) and 1 (experts) and of what is no layer."""
  found = {
    'model.embed_tokens.weight': (vocab, width),
    'model.norm.weight': (width,),
    'lm_head.weight': (vocab, width),
  }
  for layer in (0, 1):
    at, attn = f'model.layers.{layer}', f'model.layers.{layer}.self_attn'
    query = {f'{attn}.q_proj.weight': (heads * 192, width)}
    if latent:
      query = {
        f'{attn}.q_a_proj.weight': (latent, width),
        f'{attn}.q_a_layernorm.weight': (latent,),
        f'{attn}.q_b_proj.weight': (heads * 192, latent),
      }
    found |= query | {
      f'{attn}.kv_a_proj_with_mqa.weight': (576, width),
      f'{attn}.kv_a_layernorm.weight': (512,),
      f'{attn}.kv_b_proj.weight': (heads * 256, 512),
      f'{attn}.o_proj.weight': (width, heads * 128),
      f'{at}.input_layernorm.weight': (width,),
      f'{at}.post_attention_layernorm.weight': (width,),
    }
  found |= _swiglu('model.layers.0.mlp', width, dense)
  mlp = 'model.layers.1.mlp'
  found[f'{mlp}.gate.weight'] = (experts, width)
  if bias:
    found[f'{mlp}.gate.e_score_correction_bias'] = (experts,)
  for number in range(experts):
    found |= _swiglu(f'{mlp}.experts.{number}', width, expert)
  return found | _swiglu(f'{mlp}.shared_experts', width, shared)


def _llama(width, heads, hidden):
  found = {
    'model.embed_tokens.weight': (128256, width),
    'model.norm.weight': (width,),
    'lm_head.weight': (128256, width),
  }
  for layer in (0, 1):
    at = f'model.layers.{layer}'
    found |= _swiglu(f'{at}.mlp', width, hidden) | {
      f'{at}.self_attn.q_proj.weight': (heads * 128, width),
      f'{at}.self_attn.k_proj.weight': (8 * 128, width),
      f'{at}.self_attn.v_proj.weight': (8 * 128, width),
      f'{at}.self_attn.o_proj.weight': (width, heads * 128),
      f'{at}.input_layernorm.weight': (width,),
      f'{at}.post_attention_layernorm.weight': (width,),
    }
  return found


class PresetTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      'v2',
      _deepseek(5120, 102400, 128, 1536, 12288, 1536, 160, 3072, False),
    ),
    ('v2_lite', _deepseek(2048, 102400, 16, 0, 10944, 1408, 64, 2816, False)),
    ('moonlight', _deepseek(2048, 163840, 16, 0, 11264, 1408, 64, 2816, True)),
    (
      'kimi_k2',
      _deepseek(7168, 163840, 64, 1536, 18432, 2048, 384, 2048, True),
    ),
    ('llama3_8b', _llama(4096, 32, 14336)),
    ('llama3_70b', _llama(8192, 64, 28672)),
    ('llama3_405b', _llama(16384, 128, 53248)),
  )
  def test_first_layers_have_the_published_names(self, expected):
    name = self._testMethodName.removeprefix(
      'test_first_layers_have_the_published_names_'
    )
    found = {
      name: shape
      for name, (shape, _) in index_of(PRESETS[name](), (0, 1)).items()
      if not name.endswith('_scale_inv')
    }
    self.assertEqual(found, expected)

  @parameterized.parameters(*PRESETS)
  def test_every_parameter_is_published_once(self, name):
    config = PRESETS[name]()
    counts = count_parameters(config)
    own = [slot for slot in names.slots(config) if not slot.is_copy]
    values = sum(math.prod(slot.shape) for slot in own)
    self.assertEqual(values, counts.total + counts.mtp)


TREES = {
  'mla': published.SMALL,
  'two_mtp': dataclasses.replace(published.SMALL, mtp_depth=2),
  'all_experts': dataclasses.replace(published.SMALL, num_dense_layers=0),
  'all_dense': dataclasses.replace(published.SMALL, ffn='dense', mtp_depth=0),
  'no_shared': dataclasses.replace(published.SMALL, num_shared_experts=0),
  'v2': published.V2,
  'llama': published.LLAMA,
  'mha': dataclasses.replace(published.LLAMA, attention='mha'),
  'mqa': dataclasses.replace(published.LLAMA, attention='mqa'),
}


class BijectionTest(parameterized.TestCase):
  @parameterized.named_parameters(*TREES.items())
  def test_every_value_of_the_tree_is_one_published_value(self, config):
    tree = jax.tree.map(
      lambda leaf: np.zeros(leaf.shape, np.int32), abstract_weights(config).tree
    )
    for slot in names.slots(config):
      if not slot.is_copy:
        part = names.leaf(tree, slot.path)[slot.index]
        self.assertEqual(part.shape, slot.inner, msg=slot.name)
        part += 1
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      self.assertTrue((leaf == 1).all(), msg=jax.tree_util.keystr(path))

  @parameterized.named_parameters(*TREES.items())
  def test_there_and_back_is_the_same(self, config):
    rng = np.random.default_rng(0)
    for slot in names.slots(config):
      there = rng.standard_normal(slot.shape)
      ours = slot.to_ours(there)
      self.assertEqual(ours.shape, slot.inner, msg=slot.name)
      np.testing.assert_array_equal(slot.to_published(ours), there)
      back = slot.to_ours(slot.to_published(ours))
      np.testing.assert_array_equal(back, ours)

  def test_a_published_row_is_one_output_of_one_head(self):
    config = published.SMALL
    slots = {slot.name: slot for slot in names.slots(config)}
    at = 'model.layers.0.self_attn'
    up = slots[f'{at}.q_b_proj.weight']
    width = config.qk_head_dim
    published_up = np.arange(math.prod(up.shape)).reshape(up.shape)
    ours = up.to_ours(published_up)  # [C, H, X]
    self.assertEqual(ours[7, 2, 5], published_up[2 * width + 5, 7])
    out = slots[f'{at}.o_proj.weight']
    published_out = np.arange(math.prod(out.shape)).reshape(out.shape)
    ours = out.to_ours(published_out)  # [H, U, D]
    self.assertEqual(
      ours[2, 3, 11], published_out[11, 2 * config.value_head_dim + 3]
    )

  def test_a_tree_is_named_like_its_tensors(self):
    config = published.SMALL
    rng = np.random.default_rng(0)
    tree = jax.tree.map(
      lambda leaf: rng.standard_normal(leaf.shape),
      abstract_weights(config).tree,
    )
    named = dict(names.to_published(config, tree))
    self.assertEqual(list(named), [s.name for s in names.slots(config)])
    for slot in names.slots(config):
      leaf = names.leaf(tree, slot.path)[slot.index]
      np.testing.assert_array_equal(slot.to_ours(named[slot.name]), leaf)
    copy = f'model.layers.{config.num_layers}'
    np.testing.assert_array_equal(
      named[f'{copy}.embed_tokens.weight'], named['model.embed_tokens.weight']
    )
    np.testing.assert_array_equal(
      named[f'{copy}.shared_head.head.weight'], named['lm_head.weight']
    )

  def test_an_mtp_module_lies_behind_the_last_layer(self):
    config = TREES['two_mtp']
    paths = {slot.name: slot.path for slot in names.slots(config)}
    for depth in (0, 1):
      name = f'model.layers.{config.num_layers + depth}.eh_proj.weight'
      self.assertEqual(paths[name], ('params', f'mtp_{depth}', 'project'))


class CountTest(parameterized.TestCase):
  @parameterized.parameters(
    published.MODEL,
    published.SMALL,
    published.V2,
    published.LLAMA,
    dataclasses.replace(published.SMALL, mtp_depth=2),
    dataclasses.replace(published.SMALL, mtp_depth=0, num_shared_experts=0),
    dataclasses.replace(published.LLAMA, mtp_depth=1),
  )
  def test_the_closed_form_counts_what_is_listed(self, model):
    self.assertEqual(names.count(model), len(list(names.slots(model))))

  def test_no_size_takes_time(self):
    huge = dataclasses.replace(
      published.MODEL, num_layers=2 * 10**9, num_experts=2 * 10**9
    )
    self.assertGreater(names.count(huge), 10**18)


if __name__ == '__main__':
  absltest.main()
