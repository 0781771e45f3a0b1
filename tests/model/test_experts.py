"""Laws of the mixture-of-experts FFN."""

import dataclasses
import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases, router, transformer
from reference import experts as oracle
from seekax.model.experts import Experts


@functools.partial(cases.jit, static_argnums=0)
def _mix(config, params, x, bias):
  return Experts(config).apply({'params': params}, x, bias)


def _weights(config, spread=0.3):
  params, bias = cases.weights(config, seed=5, bias_spread=spread)
  params = jax.tree.map(lambda w: w[1], params['expert_layers']['experts'])
  nobody = np.zeros(config.num_experts, np.float32)
  return params, bias['layers'][1] if bias else nobody


def _inputs(config):
  rng = np.random.default_rng(1)
  return rng.standard_normal((2, 10, config.embed_dim)).astype(np.float32)


class ExpertsTest(parameterized.TestCase):
  @parameterized.product(name=('v3', 'v2', 'moonlight'), spread=(0.3, 5.0))
  def test_experts_match_oracle(self, name, spread):
    config = cases.MODELS[name]
    (params, bias), x = _weights(config, spread), _inputs(config)
    y, load = _mix(config, params, x, bias)
    weights, bias = transformer.to_float64((params, bias))
    count, balance, expected = np.zeros(config.num_experts), 0.0, []
    for x_LD in x.astype(np.float64):
      y_LD, choices = oracle.mixture(x_LD, weights, bias, config)
      expected.append(y_LD)
      for choice in choices:
        self.assertGreater(choice.margin, 1e-6, 'near-tie: take another seed')
        count[list(choice.gates)] += 1
      balance += router.sequence_balance(
        np.stack([choice.scores_E for choice in choices]),
        config.experts_per_token,
      )
    self.assertLess(cases.difference(y, expected), 1e-5)
    np.testing.assert_array_equal(load.count_E, count)
    self.assertLess(cases.difference(load.balance, balance), 1e-5)

  def test_no_token_is_dropped_under_total_imbalance(self):
    """Every token to the same experts, the other experts empty."""
    config = cases.V3
    (params, bias), x = _weights(config), _inputs(config)
    bias = np.where(np.isin(np.arange(8), [4, 5, 7]), 50.0, -50.0)
    bias = bias.astype(np.float32)
    y, load = _mix(config, params, x, bias)
    np.testing.assert_array_equal(load.count_E, [0, 0, 0, 0, 20, 20, 0, 20])
    weights = transformer.to_float64(params)
    expected = [
      oracle.mixture(x_LD, weights, bias, config)[0] for x_LD in np.float64(x)
    ]
    self.assertLess(cases.difference(y, expected), 1e-5)

  def test_every_token_is_alone(self):
    """What the other tokens are, and where they go, changes nothing."""
    config = cases.V3
    (params, bias), x = _weights(config), _inputs(config)
    y, _ = _mix(config, params, x, bias)
    other = x[::-1, ::-1].copy()
    other[1, 3] = x[0, 4]
    z, _ = _mix(config, params, other, bias)
    self.assertLess(cases.difference(z[1, 3], y[0, 4]), 1e-6)

  def test_shared_expert_is_not_gated(self):
    config = cases.V3
    (params, bias), x = _weights(config), _inputs(config)
    y, _ = _mix(config, params, x, bias)
    silent = dict(params, down=np.zeros_like(params['down']))
    shared, _ = _mix(config, silent, x, bias)
    none = dataclasses.replace(config, num_shared_experts=0)
    routed, _ = _mix(
      none, {k: v for k, v in params.items() if k != 'shared'}, x, bias
    )
    self.assertLess(cases.difference(shared + routed, y), 1e-5)
    # Twice the routed scale doubles the routed part alone.
    double = dataclasses.replace(config, routed_scale=5.0)
    doubled, _ = _mix(double, params, x, bias)
    self.assertLess(cases.difference(doubled, shared + 2 * routed), 1e-5)

  def test_balance_ignores_bias(self):
    config = cases.V3
    (params, bias), x = _weights(config), _inputs(config)
    plain = _mix(config, params, x, np.zeros_like(bias))[1]
    moved = _mix(config, params, x, 20 * bias)[1]
    self.assertFalse(np.array_equal(plain.count_E, moved.count_E))
    self.assertEqual(float(plain.balance), float(moved.balance))

  def test_router_stays_float32_under_bfloat16(self):
    """The same bfloat16 input chooses and weighs as if all were float32."""
    config = cases.V3
    (params, bias), x = _weights(config), _inputs(config)
    x16 = jnp.bfloat16(x)
    load = _mix(config, params, x16, bias)[1]
    exact = _mix(config, params, x16.astype(jnp.float32), bias)[1]
    np.testing.assert_array_equal(load.count_E, exact.count_E)
    self.assertEqual(float(load.balance), float(exact.balance))


if __name__ == '__main__':
  absltest.main()
