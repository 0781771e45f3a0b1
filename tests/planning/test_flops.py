import dataclasses

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp

from seekax.configuration import presets
from seekax.configuration.compute import ComputeConfig
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.model import ModelConfig
from seekax.configuration.train import TrainConfig
from seekax.data.pipeline import Batch
from seekax.parallel import mesh as mesh_lib
from seekax.planning import flops, parameters
from seekax.training import step
from seekax.training.schedules import Schedule
from seekax.training.state import abstract_state


class PublishedTest(parameterized.TestCase):
  """GFLOP per trained token at 4,096 positions (arXiv 2505.09343, table 2)."""

  @parameterized.parameters(
    ('v2', 155.3), ('v3_671b', 250.5), ('llama3_405b', 2473.2)
  )
  def test_training(self, name, gflop):
    ours = flops.training_flops_per_token(presets.PRESETS[name](), 4096)
    self.assertAlmostEqual(ours / 1e9, gflop, delta=0.05)

  def test_mtp_adds_10_gflop_to_v3(self):
    v3 = presets.v3_671b()
    added = flops.training_flops_per_token(
      v3, 4096, with_mtp=True
    ) - flops.training_flops_per_token(v3, 4096)
    self.assertAlmostEqual(added / 1e9, 10.2, delta=0.05)

  @parameterized.parameters(('v2', 30.2), ('v3_671b', 30.7))
  def test_lower_triangle(self, name, gflop):
    model = presets.PRESETS[name]()
    layer = flops.attention_flops_per_token(model, 4096)
    ours = 3 * model.num_layers * layer
    self.assertAlmostEqual(ours / 1e9, gflop, delta=0.05)

  @parameterized.parameters((True, 38.94), (False, 43.73))
  def test_utilization_of_the_full_run(self, causal, percent):
    per_token = flops.training_flops_per_token(
      presets.v3_671b(), 4096, causal=causal
    )
    mfu = flops.model_flops_utilization(
      per_token, 272.80e9 / 86400, 2048 * 989.4e12
    )
    self.assertAlmostEqual(100 * mfu, percent, delta=0.005 * percent)


class LawsTest(parameterized.TestCase):
  def test_training_is_three_forward_passes(self):
    model = presets.v2_lite()
    self.assertEqual(
      flops.training_flops_per_token(model, 128),
      3 * flops.forward_flops_per_token(model, 128),
    )

  def test_short_sequence_leaves_two_flop_per_parameter(self):
    model = presets.v2_lite()
    active = parameters.count_parameters(model).activated_without_embedding
    self.assertEqual(flops.forward_flops_per_token(model, 0), 2 * active)

  def test_whole_square_is_twice_the_triangle(self):
    model = presets.tiny()
    self.assertEqual(
      flops.attention_flops_per_token(model, 256, causal=False),
      2 * flops.attention_flops_per_token(model, 256),
    )

  def test_attention_grows_with_length(self):
    model = presets.tiny()
    self.assertEqual(
      flops.attention_flops_per_token(model, 512),
      2 * flops.attention_flops_per_token(model, 256),
    )

  def test_mtp_adds_nothing_where_there_is_none(self):
    model = presets.v2()
    self.assertEqual(
      flops.training_flops_per_token(model, 4096, with_mtp=True),
      flops.training_flops_per_token(model, 4096),
    )

  def test_unused_experts_cost_nothing(self):
    model = presets.tiny()
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


# Wide enough for element-wise work, which the compiler counts too, to stay
# under a percent; layers unrolled, since it counts the body of a loop once.
_WIDE = dataclasses.replace(
  presets.tiny(),
  vocab_size=1024,
  embed_dim=1024,
  num_layers=2,
  query_latent_dim=256,
  kv_latent_dim=256,
  nope_head_dim=128,
  rope_head_dim=64,
  value_head_dim=128,
  mlp_dim=2048,
  expert_dim=512,
  num_experts=2,
  experts_per_token=2,
  num_expert_groups=1,
  num_kept_groups=1,
)


class CompilerTest(parameterized.TestCase):
  """The compiler's own count of a training step, float32, nothing recomputed.

  1,024 tokens are one chunk of the cross-entropy, and 128 positions take the
  plain form of attention, which multiplies the whole square.
  """

  BATCH, LENGTH = 8, 128

  def compiled_flops(self, model: ModelConfig) -> float:
    run = Config(
      model=model,
      compute=ComputeConfig(grouped_matmul='dense'),
      data=DataConfig(sequence_length=self.LENGTH, batch_size=self.BATCH),
      train=TrainConfig(precision='float32'),
    )
    ids = jax.ShapeDtypeStruct((self.BATCH, self.LENGTH), jnp.int32)
    batch, state = Batch(ids, ids, ids, ids, ids), abstract_state(run)
    with jax.set_mesh(mesh_lib.make_mesh('data:1')):
      rates = Schedule(run).rates(0)
      accumulate = step.accumulate.lower(run, state, batch, rates)
      apply = step.apply.lower(run, state, accumulate.out_info, rates)
    # These leave the program's operations as they are, and compile faster.
    options = {
      'xla_backend_optimization_level': 0,
      'xla_llvm_disable_expensive_passes': True,
    }
    programs = [
      x.compile(compiler_options=options) for x in (accumulate, apply)
    ]
    costs = [program.cost_analysis() for program in programs]
    return sum(cost['flops'] for cost in costs if cost)

  def counted_flops(self, model: ModelConfig) -> float:
    per_token = flops.training_flops_per_token(
      model, self.LENGTH, with_mtp=True, causal=False
    )
    return self.BATCH * self.LENGTH * per_token

  @parameterized.named_parameters(
    ('mla', dict(mtp_depth=0)),
    ('mla_without_query_latent_and_mtp', dict(query_latent_dim=0)),
    ('gqa', dict(attention='gqa', num_kv_heads=2, mtp_depth=0)),
  )
  def test_dense_model(self, changes):
    model = dataclasses.replace(_WIDE, ffn='dense', **changes)
    ratio = self.compiled_flops(model) / self.counted_flops(model)
    self.assertAlmostEqual(ratio, 1, delta=0.01)

  def test_experts_with_mtp(self):
    """The dense backend sends each of a token's A choices to all E experts.

    So A choices cost A * E experts, of which A are the model's; each of the
    three products then picks its own expert's row, with another multiply-add
    per output and expert.
    """
    model = _WIDE
    choices, experts = model.experts_per_token, model.num_experts
    layers = model.num_expert_layers + model.mtp_depth
    counts = parameters.count_parameters(model)
    others = 2 * choices * (experts - 1) * counts.routed_expert
    picks = 2 * choices * experts * (2 * model.expert_dim + model.embed_dim)
    extra = self.BATCH * self.LENGTH * layers * (3 * others + 2 * picks)
    ratio = (self.compiled_flops(model) - extra) / self.counted_flops(model)
    self.assertAlmostEqual(ratio, 1, delta=0.01)


if __name__ == '__main__':
  absltest.main()
