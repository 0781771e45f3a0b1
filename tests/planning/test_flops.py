import dataclasses

from absl.testing import absltest, parameterized

from seekax import config
from seekax.planning import flops, parameters


class PublishedTest(parameterized.TestCase):
  """GFLOP per trained token at 4,096 positions (arXiv 2505.09343, table 2)."""

  @parameterized.parameters(
    ('v2', 155.3), ('v3_671b', 250.5), ('llama3_405b', 2473.2)
  )
  def test_training(self, name, gflop):
    ours = flops.training_flops_per_token(config.PRESETS[name](), 4096)
    self.assertAlmostEqual(ours / 1e9, gflop, delta=0.05)

  def test_mtp_adds_10_gflop_to_v3(self):
    v3 = config.v3_671b()
    added = flops.training_flops_per_token(
      v3, 4096, with_mtp=True
    ) - flops.training_flops_per_token(v3, 4096)
    self.assertAlmostEqual(added / 1e9, 10.2, delta=0.05)

  @parameterized.parameters(('v2', 30.2), ('v3_671b', 30.7))
  def test_lower_triangle(self, name, gflop):
    model = config.PRESETS[name]()
    layer = flops.attention_flops_per_token(model, 4096)
    ours = 3 * model.num_layers * layer
    self.assertAlmostEqual(ours / 1e9, gflop, delta=0.05)

  @parameterized.parameters((True, 38.94), (False, 43.73))
  def test_utilization_of_the_full_run(self, causal, percent):
    per_token = flops.training_flops_per_token(
      config.v3_671b(), 4096, causal=causal
    )
    mfu = flops.model_flops_utilization(
      per_token, 272.80e9 / 86400, 2048 * 989.4e12
    )
    self.assertAlmostEqual(100 * mfu, percent, delta=0.005 * percent)


class LawsTest(parameterized.TestCase):
  def test_training_is_three_forward_passes(self):
    model = config.v2_lite()
    self.assertEqual(
      flops.training_flops_per_token(model, 128),
      3 * flops.forward_flops_per_token(model, 128),
    )

  def test_short_sequence_leaves_two_flop_per_parameter(self):
    model = config.v2_lite()
    active = parameters.count_parameters(model).activated_without_embedding
    self.assertEqual(flops.forward_flops_per_token(model, 0), 2 * active)

  def test_whole_square_is_twice_the_triangle(self):
    model = config.tiny()
    self.assertEqual(
      flops.attention_flops_per_token(model, 256, causal=False),
      2 * flops.attention_flops_per_token(model, 256),
    )

  def test_attention_grows_with_length(self):
    model = config.tiny()
    self.assertEqual(
      flops.attention_flops_per_token(model, 512),
      2 * flops.attention_flops_per_token(model, 256),
    )

  def test_mtp_adds_nothing_where_there_is_none(self):
    model = config.v2()
    self.assertEqual(
      flops.training_flops_per_token(model, 4096, with_mtp=True),
      flops.training_flops_per_token(model, 4096),
    )

  def test_unused_experts_cost_nothing(self):
    model = config.tiny()
    wider = dataclasses.replace(
      model, num_experts=2 * model.num_experts, router='softmax'
    )
    router = 2 * model.num_expert_layers * model.num_experts * model.embed_dim
    narrow = dataclasses.replace(model, router='softmax')
    self.assertEqual(
      flops.forward_flops_per_token(wider, 32)
      - flops.forward_flops_per_token(narrow, 32),
      router,
    )

  def test_unknown_peak_gives_no_utilization(self):
    self.assertEqual(flops.model_flops_utilization(1e9, 1e6, 0.0), 0.0)


if __name__ == '__main__':
  absltest.main()
