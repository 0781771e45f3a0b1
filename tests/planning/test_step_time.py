import dataclasses

from absl.testing import absltest, parameterized

from seekax.configuration import presets
from seekax.planning import flops, hardware, parameters, schedules, step_time
from seekax.planning.hardware import Constants
from seekax.planning.layout import Layout, paper
from seekax.planning.run import Run

# Nothing but products and attention at full peak.
_IDEAL = Constants(
  network_efficiency=1.0,
  link_efficiency=1.0,
  memory_efficiency=1e9,
  attention_efficiency=1.0,
  expert_efficiency=1.0,
  dense_efficiency=1.0,
  passes=0.0,
  overlap_slowdown=1.0,
  bubble_stretch=1.0,
)


def _v3(**changes) -> Run:
  run = Run(
    presets.v3_671b(),
    hardware.DEVICES['h800'],
    paper(2048),
    15360,
    4096,
    'fp8',
    'bfloat16',
  )
  return dataclasses.replace(run, **changes)


class RooflineTest(parameterized.TestCase):
  @parameterized.parameters('llama3_8b', 'v2_lite')
  def test_ideal_device_takes_flop_over_peak(self, name):
    model = presets.PRESETS[name]()
    device = hardware.DEVICES['h100']
    layout = Layout(remat='none')
    run = Run(model, device, layout, 1, 4096)
    step = step_time.predict(run, _IDEAL)
    counts = parameters.count_parameters(model)
    products = 6 * counts.activated_without_embedding * 4096
    attention = flops.attention_flops_per_token(model, 4096) * model.num_layers
    # Attention's backward has five products where forward has two.
    expected = (products + 3.5 * attention * 4096) / device.peak_flops
    self.assertAlmostEqual(step.seconds / expected, 1, places=5)
    self.assertEqual(step.bubble, 0)
    self.assertEqual(step.exchange, 0)

  def test_few_tokens_wait_for_the_weights(self):
    model, device = presets.llama3_8b(), hardware.DEVICES['h100']
    run = Run(model, device, Layout(remat='none'), 1, 8)
    constants = dataclasses.replace(_IDEAL, memory_efficiency=1.0)
    forward = step_time.chunks(run, constants).forward
    counts = parameters.count_parameters(model)
    weights = 2 * counts.total / device.memory_bandwidth
    self.assertGreater(forward, weights)
    self.assertLess(forward, 1.01 * weights)

  @parameterized.parameters(
    ('h800', 'fp8', 1979e12),
    ('a100', 'fp8', 312e12),
    ('h100', 'bfloat16', 989.4e12),
    ('h100', 'float32', 494.7e12),
    ('cpu', 'float32', 190e9),
  )
  def test_peaks(self, name, precision, peak):
    self.assertEqual(step_time.peak(hardware.DEVICES[name], precision), peak)

  def test_links_work_at_the_same_time(self):
    device = hardware.DEVICES['h800']
    for sent, seconds in (
      (step_time.traffic.Bytes(50e9, 100e9), 1.0),
      (step_time.traffic.Bytes(50e9, 400e9), 2.0),
    ):
      self.assertEqual(step_time.send_seconds(sent, device, _IDEAL), seconds)


class LawsTest(parameterized.TestCase):
  def test_phases_add_up(self):
    step = step_time.predict(_v3())
    phases = ('forward', 'backward', 'weight', 'pair', 'bubble', 'optimizer')
    total = sum(getattr(step, name) for name in phases)
    self.assertAlmostEqual(step.seconds, total)
    rate = step.tokens_per_second_per_device
    self.assertAlmostEqual(rate, 15360 * 4096 / step.seconds / 2048)

  @parameterized.parameters(
    'fp8_flops',
    'peak_flops',
    'memory_bandwidth',
    'network_bandwidth',
    'link_bandwidth',
  )
  def test_a_better_device_is_never_slower(self, field):
    run = _v3()
    better = dataclasses.replace(
      run.device, **{field: 2 * getattr(run.device, field)}
    )
    before = step_time.predict(run).seconds
    after = step_time.predict(dataclasses.replace(run, device=better)).seconds
    self.assertLessEqual(after, before)

  def test_dualpipe_hides_the_exchange_that_1f1b_shows(self):
    hidden = step_time.predict(_v3())
    layout = dataclasses.replace(paper(2048), schedule='1f1b')
    shown = step_time.predict(_v3(layout=layout))
    self.assertLess(hidden.exchange, 0.2 * shown.exchange)
    self.assertLess(hidden.seconds, shown.seconds)
    chunk = step_time.chunks(_v3())
    self.assertAlmostEqual(shown.exchange, 2 * 120 * chunk.exchange)

  def test_a_slow_network_shows_even_in_pairs(self):
    run = _v3()
    slow = dataclasses.replace(run.device, network_bandwidth=5e9)
    step = step_time.predict(dataclasses.replace(run, device=slow))
    chunk = step_time.chunks(dataclasses.replace(run, device=slow))
    counts = schedules.dual_counts(16, 120)
    self.assertAlmostEqual(step.pair, counts['FB'] * 2 * chunk.exchange)

  def test_recomputing_everything_costs_a_forward_pass(self):
    device = hardware.DEVICES['h100']
    chunk = {
      remat: step_time.chunks(
        Run(presets.llama3_8b(), device, Layout(remat=remat), 1, 4096)
      )
      for remat in ('none', 'full')
    }
    self.assertAlmostEqual(
      chunk['full'].arithmetic - chunk['none'].arithmetic,
      chunk['none'].forward,
    )

  def test_all_of_a_layer_again_is_its_exchange_again(self):
    layout = Layout(expert=8, data=16, remat='full')
    run = _v3(layout=layout, batch_size=128)
    chunk = step_time.chunks(run)
    exchange = step_time.predict(run).exchange
    self.assertAlmostEqual(exchange, 3 * chunk.exchange)

  def test_fsdp_shows_what_a_chunk_does_not_hide(self):
    device = hardware.DEVICES['h100']
    model = presets.llama3_8b()
    short, long = (
      Run(model, device, Layout(fsdp=64), 64, length)
      for length in (1024, 131072)
    )
    for run, seen in ((short, True), (long, False)):
      chunk, step = step_time.chunks(run), step_time.predict(run)
      both = chunk.fsdp_forward + chunk.fsdp_backward
      # Gathered twice in bfloat16, scattered once in float32.
      held = parameters.count_parameters(model).total
      self.assertAlmostEqual(both, 63 / 64 * held * (2 + 2 + 4) / (50e9 * 0.8))
      self.assertEqual(step.fsdp > 0, seen)
      self.assertAlmostEqual(step.fsdp + step.hidden, both)

  def test_whole_experts_halve_what_two_tensor_ranks_send(self):
    layout = Layout(
      pipeline=8, tensor=2, expert_node=8, expert=4, data=4, schedule='1f1b'
    )
    cut, whole = (
      step_time.chunks(
        _v3(layout=dataclasses.replace(layout, whole_experts=value))
      )
      for value in (False, True)
    )
    self.assertLess(whole.exchange, 0.6 * cut.exchange)
    self.assertLess(whole.gathers, cut.gathers)

  def test_longer_sequences_cost_their_attention(self):
    run = _v3()
    longer = dataclasses.replace(
      run, sequence_length=32768, batch_size=1920, split_sequences=8
    )
    self.assertEqual(longer.micro_batches, run.micro_batches)
    self.assertEqual(longer.chunk_tokens, run.chunk_tokens)
    model = run.model
    added = (
      flops.attention_flops_per_token(model, 32768)
      - flops.attention_flops_per_token(model, 4096)
    ) * (model.num_layers + 1)
    seconds = added * 4096 / 16 / (989.4e12 * 0.5)
    before, after = step_time.chunks(run), step_time.chunks(longer)
    self.assertAlmostEqual(after.forward - before.forward, seconds)

  def test_two_flushes_wait_twice(self):
    once, twice = (
      step_time.predict(_v3(flushes=count)).bubble for count in (1, 2)
    )
    self.assertAlmostEqual(twice, 2 * once)


if __name__ == '__main__':
  absltest.main()
