from absl.testing import absltest

from seekax.planning import price


class PublishedTest(absltest.TestCase):
  """DeepSeek-V3, table 1."""

  def test_hours(self):
    self.assertEqual(price.V3_HOURS.total, 2_788_000)

  def test_dollars(self):
    cost = price.training_dollars(price.V3_HOURS, price.V3_PRICE)
    self.assertEqual(cost.pretraining, 5_328_000)
    self.assertEqual(cost.context_extension, 238_000)
    self.assertEqual(cost.posttraining, 10_000)
    self.assertEqual(cost.total, 5_576_000)

  def test_throughput_gives_the_hours(self):
    rate = 272.80e9 / 86400 / price.V3_DEVICES
    hours = price.device_hours(price.V3_PRETRAINING_TOKENS, rate)
    self.assertAlmostEqual(hours / 1e3, 2667, delta=0.5)
    self.assertAlmostEqual(
      price.wall_hours(hours, price.V3_DEVICES) / 24, 54.25, places=2
    )

  def test_days_per_trillion_tokens(self):
    days = price.wall_hours(180e3, price.V3_DEVICES) / 24
    self.assertAlmostEqual(days, 3.66, places=2)


class ErrorsTest(absltest.TestCase):
  def test_no_rate(self):
    with self.assertRaisesRegex(ValueError, 'must be above 0'):
      price.device_hours(1e9, 0.0)

  def test_no_device(self):
    with self.assertRaisesRegex(ValueError, 'must be above 0'):
      price.wall_hours(1e3, 0)


if __name__ == '__main__':
  absltest.main()
