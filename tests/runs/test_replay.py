"""A step computed twice is told from one that computes differently."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from seekax.runs.replay import ReplayError, step_twice
from seekax.training.guard import Guard
from seekax.training.state import TrainState


def _state(**params) -> TrainState:
  guard = Guard(*([jnp.zeros(())] * len(Guard.__dataclass_fields__)))
  return TrainState(
    step=jnp.int32(6), params=params, router_bias={}, opt_state=(), guard=guard
  )


class ReplayTest(absltest.TestCase):
  def test_a_step_that_donates_gives_what_it_gives_alone(self):
    calls = []

    @jax.jit
    def add(x, batch):
      return x + batch

    def step(state, batch, rates):
      calls.append(rates)
      new = {'w': add(state.params['w'], batch)}
      state.params['w'].delete()  # As donated.
      return state.replace(step=state.step + 1, params=new), len(calls)

    w = jnp.array([1.0, np.nan, -0.0])
    state, metrics = step_twice(step, _state(w=w), 2.0, 'rates')
    np.testing.assert_array_equal(state.params['w'], [3, np.nan, 2])
    self.assertEqual((metrics, calls), (2, ['rates', 'rates']))

  def test_one_bit_is_flagged_and_named(self):
    calls = []

    def step(state, batch, rates):
      del batch, rates
      calls.append(state)
      # 0.0 and -0.0 are equal, and not alike.
      v = state.params['v'] * (-1 if len(calls) == 1 else 1)
      new = {'u': state.params['u'] + 1, 'v': v}
      return state.replace(step=state.step + 1, params=new), None

    state = _state(u=jnp.ones(3), v=jnp.zeros((2, 2)))
    with self.assertRaisesRegex(
      ReplayError, 'step 7 .* in 1 arrays, params/v in 4 values'
    ):
      step_twice(step, state, None, None)


if __name__ == '__main__':
  absltest.main()
