import dataclasses
import math

from absl.testing import absltest, parameterized

from seekax.configuration import presets
from seekax.planning import hardware, memory, parameters, serving, step_time
from seekax.planning.layout import Layout
from seekax.planning.run import Run
from seekax.planning.serving import Demand

_H800 = hardware.DEVICES['h800']


def _served(*args) -> serving.Service:
  """The plan of a service that has room."""
  service = serving.plan(*args)
  assert service
  return service


class LimitTest(parameterized.TestCase):
  """ "Insights into DeepSeek-V3" (arXiv 2505.09343), section 2.3.2."""

  @parameterized.parameters(
    (50e9, 120.96e-6, 14.76e-3, 67.8), (900e9, 6.72e-6, 0.82e-3, 1219.75)
  )
  def test_published_chain(self, bandwidth, exchange, token, rate):
    seconds = serving.decode_exchange_seconds(32, 9, 7000, bandwidth)
    self.assertAlmostEqual(seconds, exchange, delta=1e-12)
    found = serving.decode_limit(seconds, 61)
    self.assertAlmostEqual(1 / found, token, delta=5e-6)
    self.assertAlmostEqual(found, rate, delta=0.05)


class DecodeTest(parameterized.TestCase):
  def test_long_contexts_are_read_at_the_memory_s_rate(self):
    model, demand = presets.llama3_8b(), Demand(context=10**6)
    seconds = serving.decode_seconds(model, _H800, 1, 1, False, demand)
    cache = 10**6 * memory.cache_bytes_per_token(model)
    weights = 2 * parameters.count_parameters(model).total
    read = (cache + weights) / (_H800.memory_bandwidth * 0.8)
    self.assertAlmostEqual(seconds / read, 1)

  def test_many_requests_wait_for_arithmetic(self):
    # A tiny latent cache: products and attention, not bytes.
    model, demand = presets.v2_lite(), Demand(context=1)
    few, many = (
      serving.decode_seconds(model, _H800, 1, n, True, demand)
      for n in (10_000, 20_000)
    )
    self.assertAlmostEqual(many / few, 2)

  def test_a_user_gets_what_was_asked(self):
    model = presets.v3_671b()
    for rate in (10.0, 30.0, 60.0):
      demand = Demand(tokens_per_second_per_user=rate)
      service = _served(model, _H800, True, demand)
      self.assertGreaterEqual(service.tokens_per_second_per_user, rate)
      cache = service.requests * service.cache_bytes_per_request
      self.assertLessEqual(cache + service.weight_bytes, 80e9)
      self.assertAlmostEqual(
        service.decode_tokens_per_second,
        service.requests * service.tokens_per_second_per_user,
      )

  def test_patience_raises_the_rate_of_a_device(self):
    model = presets.llama3_70b()
    rates = [
      _served(
        model, _H800, True, Demand(tokens_per_second_per_user=users)
      ).decode_tokens_per_second
      for users in (80.0, 40.0)
    ]
    self.assertLess(rates[0], rates[1])

  def test_patient_users_fill_the_memory(self):
    model, demand = presets.llama3_70b(), Demand(tokens_per_second_per_user=0.1)
    service = _served(model, _H800, True, demand)
    self.assertEqual(service.decode_devices, 2)
    per_device = service.cache_bytes_per_request / 2
    room = memory.room(_H800) - service.weight_bytes
    self.assertEqual(service.requests, room // per_device)

  def test_absorbed_attention_is_arithmetic_not_bytes(self):
    # 128 heads read one latent: 2 x (512 + 512 + 64) FLOP each per position.
    context = 10**7
    demand = Demand(context=context)
    seconds = serving.decode_seconds(
      presets.v3_671b(), _H800, 144, 1, True, demand
    )
    flops = 61 * 128 * 2 * 1088 * context
    expected = flops / (_H800.peak_flops * 0.5)
    self.assertAlmostEqual(seconds / expected, 1, places=3)

  def test_bytes_of_a_request(self):
    service = _served(presets.v3_671b(), _H800, True)
    self.assertEqual(service.cache_bytes_per_request, 4989 * 70_272)

  def test_weights_of_v3_by_hand(self):
    v3 = dataclasses.replace(presets.v3_671b(), mtp_depth=0)
    counts = parameters.count_parameters(v3)
    experts = 58 * 256 * 3 * 7168 * 2048
    tables = 2 * 129280 * 7168
    service = _served(v3, _H800, True)
    self.assertEqual(service.decode_devices, 144)
    self.assertAlmostEqual(
      service.weight_bytes,
      counts.total - experts - tables + 2 * tables + experts / 144,
    )

  def test_what_has_no_room_has_no_service(self):
    self.assertIsNone(
      serving.plan(presets.v3_671b(), hardware.DEVICES['cpu'], False)
    )
    self.assertIsNone(serving.plan(presets.llama3_405b(), _H800, False))


class PriceTest(absltest.TestCase):
  def test_dollars_per_million(self):
    # 1,000 tokens/s make a million in 1,000 s, 0.2778 hours.
    self.assertAlmostEqual(
      serving.dollars_per_million(1000, 3.6), 1000 / 3600 * 3.6
    )
    self.assertEqual(serving.dollars_per_million(0, 2), math.inf)

  def test_prefill_is_a_forward_pass(self):
    model = presets.llama3_8b()
    demand = Demand(prompt=4096)
    service = _served(model, _H800, False, demand)
    run = Run(
      model,
      _H800,
      Layout(micro_batch=4),
      4,
      4096,
    )
    forward = step_time.chunks(run).forward * hardware.FITTED.overlap_slowdown
    self.assertAlmostEqual(
      service.prefill_tokens_per_second, 4 * 4096 / forward
    )


if __name__ == '__main__':
  absltest.main()
