"""Laws of averaged weights."""

from absl.testing import absltest
import numpy as np

from seekax.configuration.optim import OptimConfig
from seekax.model.weights import Weights
from seekax.training.averaging import Average
from seekax.training.state import TrainState


def _state(value) -> TrainState:
  params = {'w': np.full((2, 3), value, np.float32)}
  bias = {'layers': np.full((1, 2), -value, np.float32)}
  return TrainState(0, params, bias, (), ())


class AverageTest(absltest.TestCase):
  def test_updates_match_the_definition(self):
    optim = OptimConfig(ema_decay=0.9, ema_every=2)
    values = np.random.default_rng(0).standard_normal(12)
    average = Average(optim, Weights({'w': 7.0}, {}))
    self.assertEqual(float(average.weights.params['w']), 7)
    first = _state(values[0])
    average = Average(optim, first.weights)
    for n, value in enumerate(values, start=1):
      average.update(_state(value))
      weights = 0.81 ** np.arange(n)[::-1]
      expected = np.sum(weights * values[:n]) / weights.sum()
      np.testing.assert_allclose(
        average.weights.params['w'], expected, atol=1e-6
      )
      np.testing.assert_allclose(
        average.weights.router_bias['layers'], -expected, atol=1e-6
      )
    self.assertEqual(average.updates, 12)

  def test_it_goes_on_where_it_was(self):
    optim = OptimConfig(ema_decay=0.99)
    first = _state(0)
    whole = Average(optim, first.weights)
    for value in (1, 2, 3):
      whole.update(_state(value))
    again = Average(optim, whole.weights, whole.updates)
    for value in (4, 5):
      whole.update(_state(value))
      again.update(_state(value))
    np.testing.assert_array_equal(
      again.weights.params['w'], whole.weights.params['w']
    )

  def test_due_every_so_many_steps(self):
    average = Average(OptimConfig(ema_decay=0.9, ema_every=3), Weights({}, {}))
    due = [step for step in range(1, 10) if average.is_due(step)]
    self.assertEqual(due, [3, 6, 9])


if __name__ == '__main__':
  absltest.main()
