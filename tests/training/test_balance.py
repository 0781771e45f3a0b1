"""Laws of the bias rule."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases
from reference import training as oracle
from seekax.configuration.model import ModelConfig
from seekax.model.router import route
from seekax.training import balance


class UpdateTest(parameterized.TestCase):
  @parameterized.parameters(1e-3, 1e-2, 0.0)
  def test_bias_rule_matches_oracle(self, rate):
    rng = np.random.default_rng(0)
    bias = rng.uniform(-5, 5, (3, 8)).astype(np.float32)
    load = rng.integers(0, 40, (3, 8)).astype(np.int32)
    load[1] = 7  # at the mean: no move
    load[2, :4] = [0, 10, 5, 5]
    load[2, 4:] = 5
    actual = cases.jit(balance.update_bias)(bias, load, rate)
    expected = oracle.moved_bias(bias, load, rate)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_array_equal(actual[1], bias[1])
    if rate:
      moved = np.sign(np.asarray(actual)[2] - bias[2])
      np.testing.assert_array_equal(moved, [1, -1, 0, 0, 0, 0, 0, 0])

  def test_max_violation(self):
    load = np.array([[4, 4, 4, 4], [16, 0, 0, 0], [8, 4, 2, 2]], np.int32)
    np.testing.assert_allclose(balance.max_violation(load), [0, 3, 1])

  def test_entropy_and_unused_experts(self):
    load = np.array([[4, 4, 4, 4], [16, 0, 0, 0], [8, 8, 0, 0]], np.int32)
    np.testing.assert_allclose(balance.entropy(load), [1, 0, 0.5], atol=1e-12)
    np.testing.assert_array_equal(balance.unused_share(load), [0, 0.75, 0.5])

  def test_layers_do_not_mix(self):
    bias = np.zeros((2, 4), np.float32)
    load = np.array([[1, 2, 3, 4], [400, 300, 200, 100]])
    moved = balance.update_bias(bias, load, 0.5)
    np.testing.assert_array_equal(
      moved, [[0.5, 0.5, -0.5, -0.5], [-0.5, -0.5, 0.5, 0.5]]
    )


class ControlTest(absltest.TestCase):
  def test_rule_balances_a_skewed_router(self):
    """Fixed affinities that favour some experts, bias moved by 0.01."""
    config = ModelConfig(
      num_experts=16,
      num_expert_groups=4,
      num_kept_groups=2,
      experts_per_token=4,
    )
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((2048, 16)) + np.linspace(-1, 1, 16)
    logits = logits.astype(np.float32)

    def step(bias, _):
      experts = route(logits, bias[0], config).experts_TA
      load = jnp.bincount(experts.reshape(-1), length=16)[None]
      violation = balance.max_violation(load)[0]
      return balance.update_bias(bias, load, 1e-2), violation

    start = jnp.zeros((1, 16))
    run = cases.jit(lambda b: jax.lax.scan(step, b, length=120))
    bias, violations = run(start)
    self.assertGreater(violations[0], 1)
    self.assertLess(np.max(violations[-20:]), 0.3)
    # The favoured experts are held back.
    self.assertLess(float(bias[0, 15]), float(bias[0, 0]))


if __name__ == '__main__':
  absltest.main()
