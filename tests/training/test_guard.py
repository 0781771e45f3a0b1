"""Laws of which steps are thrown away."""

from absl.testing import absltest, parameterized
import numpy as np

from reference import cases
from seekax.configuration.train import TrainConfig
from seekax.training import guard

_judge = cases.jit(guard.judge, static_argnums=3)


def _run(losses, norms, deviations, window):
  """Which steps are taken, one after the other, and the last guard."""
  state = guard.init_guard(
    TrainConfig(spike_deviations=deviations, spike_window=window)
  )
  taken = []
  for loss, norm in zip(losses, norms, strict=True):
    ok, state = _judge(state, np.float32(loss), np.float32(norm), deviations)
    taken.append(bool(ok))
  return taken, state


def _expected(losses, norms, deviations, window):
  """The same by the words, in float64."""
  taken, last = [], []
  for pair in zip(losses, norms, strict=True):
    ok = all(np.isfinite(pair))
    if ok and deviations and len(last) >= window:
      seen = np.array(last[-window:], np.float64)
      ok = all(np.array(pair) <= seen.mean(0) + deviations * seen.std(0))
    if all(np.isfinite(pair)):
      last.append(pair)
    taken.append(bool(ok))
  return taken


class GuardTest(parameterized.TestCase):
  @parameterized.parameters((0.0, 4), (3.0, 4), (2.0, 7))
  def test_decisions_match_oracle(self, deviations, window):
    rng = np.random.default_rng(0)
    losses, norms = 3 + 0.1 * rng.standard_normal((2, 60))
    losses[[9, 30, 31]] = 9, 5, np.nan
    norms[[20, 41, 42, 50]] = 40, np.inf, np.inf, 4
    taken, state = _run(losses, norms, deviations, window)
    expected = _expected(losses, norms, deviations, window)
    self.assertEqual(taken, expected)
    self.assertEqual(int(state.nonfinite), 3)
    self.assertEqual(int(state.seen), 57)
    self.assertEqual(int(state.spikes), taken.count(False) - 3)
    self.assertEqual(int(state.spikes) > 3, deviations > 0)

  def test_the_window_is_full_at_its_length_and_not_a_step_before(self):
    calm = [1.0, 1.1, 0.9, 1.0]
    # The fourth step has only three before it.
    taken, _ = _run([*calm[:3], 9.0], np.ones(4), 2.0, 4)
    self.assertEqual(taken, [True, True, True, True])
    taken, _ = _run([*calm, 9.0], np.ones(5), 2.0, 4)
    self.assertEqual(taken, [True, True, True, True, False])

  def test_counts_in_a_row(self):
    counts = []
    state = guard.init_guard(TrainConfig())
    for loss in (1, np.nan, np.nan, 1, np.inf):
      _, state = _judge(state, np.float32(loss), np.float32(1), 0.0)
      counts.append(int(state.nonfinite_in_a_row))
    self.assertEqual(counts, [0, 1, 2, 0, 1])

  def test_a_new_level_is_a_spike_only_for_a_while(self):
    losses = [1.0, 1.1, 0.9, 1.0] + 8 * [5.0]
    taken, _ = _run(losses, np.ones(12), 2.0, 4)
    self.assertFalse(taken[4])
    self.assertTrue(all(taken[8:]))

  def test_without_spikes_nothing_is_kept(self):
    state = guard.init_guard(TrainConfig())
    self.assertEqual(state.losses_W.shape, (1,))


if __name__ == '__main__':
  absltest.main()
