import dataclasses
import subprocess
import sys

from absl.testing import absltest, parameterized

from seekax.configuration import presets
from seekax.planning import parameters


def _count(name: str) -> parameters.ParameterCounts:
  return parameters.count_parameters(presets.PRESETS[name]())


class ReleasedV3Test(absltest.TestCase):
  """Against the released weights, to the parameter."""

  def setUp(self):
    super().setUp()
    self.v3 = _count('v3_671b')

  def test_total_and_activated(self):
    self.assertEqual(self.v3.total, 671_026_419_200)
    self.assertEqual(self.v3.activated, 37_552_297_472)
    self.assertEqual(self.v3.activated_without_embedding, 36_625_618_432)

  def test_without_vocabulary_tables(self):
    tables = self.v3.embedding + self.v3.head
    self.assertEqual(self.v3.total - tables, 669_173_061_120)
    self.assertEqual(self.v3.activated - tables, 35_698_939_392)

  def test_parts(self):
    self.assertEqual(self.v3.dense_ffn, 396_361_728)
    self.assertEqual(self.v3.routed_expert, 44_040_192)
    self.assertEqual(self.v3.expert_ffn, 11_320_164_608)
    self.assertEqual(self.v3.attention + self.v3.block_norms, 187_121_664)
    self.assertEqual(self.v3.expert_block, 11_507_286_272)

  def test_mtp(self):
    self.assertEqual(self.v3.mtp, 11_610_068_224)
    self.assertAlmostEqual(
      (self.v3.mtp_activated + self.v3.embedding) / 1e9, 2.54, places=2
    )

  def test_download_stores_tables_twice(self):
    tables = self.v3.embedding + self.v3.head
    self.assertEqual(self.v3.total + self.v3.mtp + tables, 684_489_845_504)

  def test_attention_shapes(self):
    # (out, in) of the released matrices, then the two latent norms.
    self.assertEqual(
      self.v3.attention,
      1536 * 7168
      + 24576 * 1536
      + 576 * 7168
      + 32768 * 512
      + 7168 * 16384
      + 1536
      + 512,
    )


class PublishedTotalsTest(parameterized.TestCase):
  """Within half of the last digit that others print, in units of 1e9."""

  @parameterized.parameters(
    ('v3_671b', 671.03),
    ('v2', 235.74),
    ('v2_lite', 15.71),
    ('moonlight', 15.96),
    ('kimi_k2', 1026.41),
    ('llama3_8b', 8.03),
    ('llama3_70b', 70.55),
    ('llama3_405b', 405.85),
  )
  def test_total(self, name, billions):
    self.assertAlmostEqual(_count(name).total / 1e9, billions, delta=0.005)

  @parameterized.parameters(
    ('v3_671b', 37.55, 36.63), ('v2', 21.38, 20.85), ('v2_lite', 2.66, 2.45)
  )
  def test_activated(self, name, with_tables, without_embedding):
    counts = _count(name)
    self.assertAlmostEqual(counts.activated / 1e9, with_tables, delta=0.005)
    self.assertAlmostEqual(
      counts.activated_without_embedding / 1e9, without_embedding, delta=0.005
    )


class LawsTest(parameterized.TestCase):
  @parameterized.parameters(*presets.PRESETS)
  def test_dense_model_activates_all_and_experts_fewer(self, name):
    counts = _count(name)
    if counts.model.uses_experts:
      self.assertLess(counts.activated, counts.total)
    else:
      self.assertEqual(counts.activated, counts.total)

  def test_choosing_all_experts_activates_all(self):
    model = dataclasses.replace(
      presets.tiny(), experts_per_token=16, num_kept_groups=4
    )
    counts = parameters.count_parameters(model)
    self.assertEqual(counts.activated, counts.total)

  def test_softmax_router_has_no_bias(self):
    sigmoid = presets.tiny()
    softmax = dataclasses.replace(sigmoid, router='softmax')
    bias = (
      parameters.count_parameters(sigmoid).router
      - parameters.count_parameters(softmax).router
    )
    self.assertEqual(bias, sigmoid.num_experts)

  def test_shared_experts_count_as_one_of_their_summed_width(self):
    two = dataclasses.replace(presets.tiny(), num_shared_experts=2)
    counts = parameters.count_parameters(two)
    self.assertEqual(counts.shared_expert, 2 * counts.routed_expert)

  def test_no_shared_expert_counts_nothing(self):
    model = dataclasses.replace(presets.tiny(), num_shared_experts=0)
    self.assertEqual(parameters.count_parameters(model).shared_expert, 0)

  def test_gqa_between_mqa_and_mha(self):
    gqa = presets.llama3_tiny()

    def attention(**changes):
      model = dataclasses.replace(gqa, **changes)
      return parameters.count_parameters(model).attention

    self.assertEqual(
      attention(attention='mha'), attention(num_kv_heads=gqa.num_heads)
    )
    self.assertEqual(attention(attention='mqa'), attention(num_kv_heads=1))
    self.assertLess(attention(attention='mqa'), attention())
    self.assertLess(attention(), attention(attention='mha'))

  @parameterized.parameters('mla', 'mha')
  def test_one_more_layer_adds_one_block(self, attention):
    model = dataclasses.replace(presets.tiny(), attention=attention)
    counts = parameters.count_parameters(model)
    deeper = parameters.count_parameters(
      dataclasses.replace(model, num_layers=model.num_layers + 1)
    )
    self.assertEqual(deeper.total - counts.total, counts.expert_block)

  def test_mtp_modules_add_up_and_leave_total(self):
    one = _count('tiny')
    two = parameters.count_parameters(
      dataclasses.replace(presets.tiny(), mtp_depth=2)
    )
    self.assertEqual(two.mtp, 2 * one.mtp)
    self.assertEqual(two.total, one.total)

  def test_mtp_of_a_dense_model_has_a_dense_block(self):
    model = dataclasses.replace(presets.llama3_tiny(), mtp_depth=1)
    counts = parameters.count_parameters(model)
    width = model.embed_dim
    self.assertEqual(
      counts.mtp, counts.plain_block + 2 * width * width + 3 * width
    )

  def test_without_query_latent(self):
    model = dataclasses.replace(presets.tiny(), query_latent_dim=0)
    # Query, down with its norm, up and output of 4 heads.
    self.assertEqual(
      parameters.count_parameters(model).attention,
      64 * 4 * 32 + 64 * (32 + 16) + 32 + 32 * 4 * 32 + 4 * 16 * 64,
    )


class ImportsTest(absltest.TestCase):
  def test_planning_imports_no_jax(self):
    program = (
      'import importlib, pkgutil, sys\n'
      'import seekax.planning as planning\n'
      'for module in pkgutil.iter_modules(planning.__path__):\n'
      '  importlib.import_module("seekax.planning." + module.name)\n'
      'print(sorted(set(sys.modules) & {"jax", "jaxlib", "flax"}))\n'
    )
    result = subprocess.run(
      [sys.executable, '-c', program],
      capture_output=True,
      text=True,
      check=True,
    )
    self.assertEqual(result.stdout.strip(), '[]')


if __name__ == '__main__':
  absltest.main()
