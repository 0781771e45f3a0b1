import dataclasses

from absl.testing import absltest, parameterized

from planning import requests
from seekax.configuration import presets
from seekax.configuration.errors import InputError
from seekax.planning import (
  flops,
  hardware,
  layout_choice,
  memory,
  parameters,
  step_time,
)
from seekax.planning import plan as plan_lib

_TOKENS_PER_STEP = 15360 * 4096


class V3Test(absltest.TestCase):
  """The run of the report, in the report's layout."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.plan = plan_lib.make(requests.request())
    cls.json = cls.plan.as_json()

  def test_the_layout_is_the_papers(self):
    self.assertEqual(
      self.json['layout'],
      'pipeline:16,expert_node:8,expert:8,data:2,schedule:dualpipe',
    )
    self.assertEqual(self.json['layout_from'], layout_choice.PAPER)
    named = plan_lib.make(requests.request(layout='paper')).as_json()
    self.assertEqual(named.pop('layout_from'), layout_choice.ASKED)
    expected = {k: v for k, v in self.json.items() if k != 'layout_from'}
    self.assertEqual(named, expected)

  def test_exact_figures(self):
    self.assertEqual(self.json['parameters_total'], 671_026_419_200)
    self.assertEqual(self.json['parameters_activated'], 37_552_297_472)
    self.assertEqual(self.json['parameters_mtp'], 11_610_068_224)
    self.assertEqual(self.json['cache_bytes_per_token'], 70_272)
    self.assertEqual(
      self.json['gflop_per_token'],
      flops.training_flops_per_token(presets.v3_671b(), 4096) / 1e9,
    )

  def test_hours_and_dollars_follow_from_the_rate(self):
    rate = self.json['tokens_per_second_per_device']
    hours, dollars = self.json['hours'], self.json['dollars']
    self.assertAlmostEqual(
      rate, _TOKENS_PER_STEP / self.json['seconds_per_step'] / 2048
    )
    self.assertAlmostEqual(hours['pretraining'], 14.8e12 / rate / 3600)
    self.assertEqual(hours['posttraining'], 5000)
    stages = ('pretraining', 'extension_32k', 'extension_128k', 'posttraining')
    self.assertAlmostEqual(sum(hours[s] for s in stages), hours['total'])
    for stage, value in hours.items():
      self.assertAlmostEqual(dollars[stage], 2 * value)

  def test_extension_costs_more_per_token(self):
    hours = self.json['hours']
    per_token = hours['pretraining'] / 14.8e12
    extended = 1000 * _TOKENS_PER_STEP
    ratio = hours['extension_128k'] / extended / per_token
    counted = flops.training_flops_per_token(
      presets.v3_671b(), 131072
    ) / flops.training_flops_per_token(presets.v3_671b(), 4096)
    self.assertBetween(ratio, 1, 1.2 * counted)

  def test_mfu_counts_no_mtp_and_the_bfloat16_peak(self):
    self.assertAlmostEqual(
      self.json['mfu'],
      self.json['gflop_per_token']
      * 1e9
      * self.json['tokens_per_second_per_device']
      / 989.4e12,
    )

  def test_memory_adds_up(self):
    found = dict(self.json['memory_bytes'])
    self.assertAlmostEqual(found.pop('total'), sum(found.values()))

  def test_extensions_in_this_layout_find_no_room(self):
    needed = self.json['extension_memory_bytes']
    self.assertEqual(list(needed), ['extension_32k', 'extension_128k'])
    self.assertGreater(needed['extension_32k'], 78e9)
    self.assertGreater(needed['extension_128k'], needed['extension_32k'])

  def test_what_is_in_sight_and_what_is_hidden_is_all_there_is(self):
    step = self.plan.step
    chunk = step_time.chunks(self.plan.run)
    self.assertAlmostEqual(
      step.exchange + step.hidden, 2 * 120 * chunk.exchange
    )

  def test_traffic_between_nodes_by_hand(self):
    sent = self.plan.traffic_bytes_per_token()
    # 59 layers of experts with MTP's, both directions; 15 boundaries of stages.
    dispatch, combine = sent['dispatch'].network, sent['combine'].network
    self.assertAlmostEqual(combine / dispatch, 2 / (1 + 4 / 128))
    self.assertLess(combine, 2 * 59 * 4 * 7168 * 2)
    self.assertEqual(sent['pipeline'].network, 2 * 15 * 7168 * 2)
    # Both stages that a rank holds: gradients in float32, weights in bfloat16.
    stage = memory.stage_parameters(
      presets.v3_671b(), self.plan.run.layout, largest=False
    )
    once = 2 * (stage.plain * 127 / 128 + stage.experts / 2) * (4 + 2)
    self.assertAlmostEqual(
      sent['data'].network * _TOKENS_PER_STEP / 2048, once, delta=1
    )

  def test_what_the_program_sends_is_more(self):
    # Per layer and token, in bfloat16: docs/planning.md.
    sent = self.json['exchange_bytes_per_token_by_program']
    self.assertAlmostEqual(sent['network'] / 59, 314_300)
    self.assertAlmostEqual(sent['link'] / 59, 627_375)

  def test_fsdp_is_in_the_traffic_and_in_the_time(self):
    request = requests.request(
      config=requests.config(presets.v2_lite()),
      device=hardware.DEVICES['h100'],
      devices=64,
      layout='fsdp:64',
    )
    plan = plan_lib.make(request)
    sent = plan.traffic_bytes_per_token()
    held = parameters.count_parameters(presets.v2_lite()).total
    count = plan.run.micro_batches
    per_device = sent['fsdp_weights'].network * _TOKENS_PER_STEP / 64
    self.assertAlmostEqual(per_device / (2 * count * held * 2 * 63 / 64), 1)
    ratio = sent['fsdp_gradients'].network / sent['fsdp_weights'].network
    self.assertAlmostEqual(ratio, 4 / (2 * 2))
    self.assertGreater(plan.as_json()['seconds']['fsdp'], 0)
    self.assertNotIn('data', sent)


class OtherRunsTest(parameterized.TestCase):
  def test_stages_go_in_proportion_to_tokens(self):
    whole = plan_lib.make(requests.request()).hours
    half = plan_lib.make(requests.request(tokens=7.4e12)).hours
    for stage, hours in whole.items():
      self.assertAlmostEqual(half[stage], hours / 2)

  def test_posttraining_is_an_input(self):
    plan = plan_lib.make(requests.request(posttraining_hours=123.0))
    self.assertEqual(plan.hours['posttraining'], 123)

  def test_short_batches_are_not_extended(self):
    config = requests.config(presets.tiny(), sequence_length=32, batch_size=16)
    plan = plan_lib.make(
      requests.request(
        config=config, device=hardware.DEVICES['cpu'], devices=1, tokens=1e6
      )
    )
    self.assertEqual(plan.hours['extension_32k'], 0)
    self.assertEqual(plan.traffic_bytes_per_token(), {})

  def test_dense_model_of_equal_activation(self):
    config = requests.config(presets.v3_671b())
    dense = plan_lib.dense_of_equal_activation(config).model
    self.assertFalse(dense.uses_experts)
    here, there = (
      parameters.count_parameters(m).activated_without_embedding
      for m in (dense, config.model)
    )
    self.assertAlmostEqual(here / there, 1, delta=1e-4)

  @parameterized.parameters(
    (dict(devices=0), r'--devices=0 is not in'),
    (dict(tokens=1e6), 'between one step of this config'),
    (dict(tokens=float('nan')), '--tokens=nan'),
    (dict(tokens=1e30), '--tokens=1e.30'),
    (dict(price=-1.0), '--price=-1'),
    (dict(price=float('nan')), '--price=nan'),
    (dict(posttraining_hours=float('inf')), '--posttraining_hours=inf'),
    (dict(posttraining_hours=-7.0), '--posttraining_hours=-7 is not in 0'),
    (dict(posttraining_hours=1e300), '--posttraining_hours=1e.300'),
    (dict(device=hardware.DEVICES['cpu']), 'no network of a CPU'),
  )
  def test_what_cannot_be_is_said(self, changes, words):
    with self.assertRaisesRegex(InputError, words):
      plan_lib.make(requests.request(**changes))

  def test_devices_without_fp8_are_planned_in_bfloat16(self):
    device = hardware.DEVICES['a100']
    plan = plan_lib.make(requests.request(device=device, devices=4096))
    self.assertTrue(plan.lacks_fp8)
    self.assertEqual(plan.as_json()['precision'], 'bfloat16')
    config = plan.request.config
    train = dataclasses.replace(config.train, precision='bfloat16')
    plain = plan_lib.make(
      dataclasses.replace(
        plan.request, config=dataclasses.replace(config, train=train)
      )
    )
    self.assertEqual(plan.as_json(), plain.as_json())
    self.assertFalse(plain.lacks_fp8)

  def test_a_stage_of_extension_has_its_own_hours(self):
    config = requests.config(
      presets.v3_671b(), sequence_length=32768, batch_size=1920
    )
    config = dataclasses.replace(
      config, train=dataclasses.replace(config.train, extend_context=True)
    )
    plan = plan_lib.make(requests.request(config=config, tokens=62.9e9))
    rate = plan.step.tokens_per_second_per_device
    self.assertEqual(plan.hours['extension_32k'], 62.9e9 / rate / 3600)
    self.assertEqual(plan.hours['total'], plan.hours['extension_32k'])
    self.assertEmpty(plan.longer)


if __name__ == '__main__':
  absltest.main()
