"""Laws of the learning rate."""

from absl.testing import absltest, parameterized
import numpy as np

from reference import training as oracle
from seekax.config import OptimConfig
from seekax.training.schedules import learning_rate

_PEAK, _FINAL = 2e-3, 5e-4


def _optim(warmup_steps, constant_steps, decay_steps):
  return OptimConfig(
    learning_rate=_PEAK,
    final_learning_rate=_FINAL,
    warmup_steps=warmup_steps,
    constant_steps=constant_steps,
    decay_steps=decay_steps,
  )


class ScheduleTest(parameterized.TestCase):
  @parameterized.parameters(
    (10, 20, 30, 100),
    (10, 20, 0, 100),
    (0, 20, 30, 100),
    (10, 0, 30, 100),
    (0, 0, 0, 100),
    (1, 0, 5, 100),
  )
  def test_schedule_matches_oracle(self, warmup, constant, decay, steps):
    optim = _optim(warmup, constant, decay)
    actual = learning_rate(np.arange(120), optim, steps)
    expected = [oracle.learning_rate(s, optim, steps) for s in range(120)]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)

  @parameterized.parameters(
    (0, _PEAK / 10),  # the first step moves
    (8, 9 * _PEAK / 10),
    (9, _PEAK),
    (29, _PEAK),
    (30, _PEAK),
    (45, (_PEAK + _FINAL) / 2),
    (60, _FINAL),
    (61, _FINAL),
    (10**6, _FINAL),
  )
  def test_corners(self, step, rate):
    value = learning_rate(step, _optim(10, 20, 30), 100)
    self.assertAlmostEqual(float(value), rate, delta=1e-8)

  def test_cosine_ends_with_the_run(self):
    optim = _optim(10, 20, 0)
    self.assertGreater(float(learning_rate(99, optim, 100)), _FINAL)
    self.assertAlmostEqual(
      float(learning_rate(100, optim, 100)), _FINAL, delta=1e-9
    )

  def test_run_shorter_than_its_warm_up_stays_finite(self):
    rates = learning_rate(np.arange(5), _optim(10, 20, 0), 5)
    self.assertTrue(np.isfinite(rates).all())


if __name__ == '__main__':
  absltest.main()
