"""Laws of routing and of the sequence-wise balance loss."""

import dataclasses

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases
from reference import router as oracle
from seekax.configuration.model import ModelConfig
from seekax.model import router

_route = cases.jit(router.route, static_argnums=2)

_V3 = dataclasses.replace(
  ModelConfig(), num_experts=32, num_expert_groups=8, num_kept_groups=4
)
_V2 = dataclasses.replace(
  _V3,
  router='softmax',
  group_score='max',
  num_kept_groups=3,
  experts_per_token=6,
  normalize_gates=False,
  routed_scale=16.0,
)
_FAMILIES = {
  'v3': _V3,
  'v3_without_groups': dataclasses.replace(
    _V3, num_expert_groups=1, num_kept_groups=1
  ),
  'v3_without_normalising': dataclasses.replace(_V3, normalize_gates=False),
  'v2': _V2,
  'v2_normalising': dataclasses.replace(_V2, normalize_gates=True),
}

# Below this distance float32 may order two candidates otherwise.
_NEAR_TIE = 1e-6


def _logits(count, tokens, seed=0):
  rng = np.random.default_rng(seed)
  return (1.5 * rng.standard_normal((tokens, count))).astype(np.float32)


def _bias(config, spread, seed=1):
  rng = np.random.default_rng(seed)
  return rng.uniform(-spread, spread, config.num_experts).astype(np.float32)


def _by_expert(routing, t) -> dict[int, float]:
  experts = np.asarray(routing.experts_TA)[t].tolist()
  gates = np.asarray(routing.gates_TA)[t].tolist()
  return dict(zip(experts, gates, strict=True))


class OracleTest(parameterized.TestCase):
  @parameterized.parameters(
    ('v3', 0.3),
    ('v3', 5.0),
    ('v3_without_groups', 0.3),
    ('v3_without_normalising', 5.0),
    ('v2', 0.0),
    ('v2_normalising', 0.0),
  )
  def test_choices_and_gates_match_oracle(self, family, spread):
    config, tokens = _FAMILIES[family], 10_000
    logits, bias = _logits(32, tokens), _bias(config, spread)
    routing = jax.device_get(_route(logits, bias, config))
    near_ties, worst = 0, 0.0
    for t in range(tokens):
      choice = oracle.choose(
        logits[t].astype(np.float64), bias.astype(np.float64), config
      )
      if choice.margin < _NEAR_TIE:
        near_ties += 1
        continue
      actual = _by_expert(routing, t)
      self.assertEqual(actual.keys(), choice.gates.keys(), f'token {t}')
      for e, gate in choice.gates.items():
        worst = max(worst, abs(actual[e] / gate - 1))
    self.assertLess(near_ties, tokens / 100)
    self.assertLess(worst, 1e-5)


class SelectionTest(parameterized.TestCase):
  def test_bias_moves_choice_not_gate(self):
    config = dataclasses.replace(
      _V3, num_expert_groups=1, num_kept_groups=1, normalize_gates=False
    )
    logits, no_bias = _logits(32, 50), np.zeros(32, np.float32)
    # An array of its own: a jitted call may still be reading the first.
    bias = np.where(np.arange(32) == 7, np.float32(10), no_bias)
    plain = _route(logits, no_bias, config)
    moved = _route(logits, bias, config)
    self.assertFalse((np.asarray(plain.experts_TA) == 7).any(axis=1).all())
    self.assertTrue((np.asarray(moved.experts_TA) == 7).any(axis=1).all())
    np.testing.assert_array_equal(moved.scores_TE, plain.scores_TE)
    score = 1 / (1 + np.exp(-np.float64(logits)))
    for t in range(50):
      for e, gate in _by_expert(moved, t).items():
        self.assertAlmostEqual(gate, 2.5 * score[t, e], delta=1e-5)

  def test_normalised_gates_sum_to_the_scale(self):
    routing = _route(_logits(32, 50), _bias(_V3, 5.0), _V3)
    np.testing.assert_allclose(
      routing.gates_TA.sum(axis=1), _V3.routed_scale, rtol=1e-5
    )

  @parameterized.parameters(-3.0, -5.0)
  def test_masked_groups_are_minus_infinity(self, level):
    """Among negative biased scores a 0 would win over all that is kept."""
    tokens, logits = 200, _logits(32, 200)
    bias = np.float32(level) + _bias(_V3, 0.3)
    routing = jax.device_get(_route(logits, bias, _V3))
    differ = 0
    for t in range(tokens):
      arguments = logits[t].astype(np.float64), bias.astype(np.float64), _V3
      right = oracle.choose(*arguments)
      wrong = oracle.choose(*arguments, masked=0.0)
      self.assertEqual(_by_expert(routing, t).keys(), right.gates.keys())
      differ += right.gates.keys() != wrong.gates.keys()
    self.assertEqual(differ, tokens)

  def test_experts_come_from_the_kept_groups(self):
    routing = _route(_logits(32, 500), _bias(_V3, 0.3), _V3)
    groups = np.asarray(routing.experts_TA) // 4
    counts = [len(set(row)) for row in groups.tolist()]
    self.assertLessEqual(max(counts), _V3.num_kept_groups)
    self.assertEqual(max(counts), _V3.num_kept_groups)

  def test_a_group_counts_by_its_two_best(self):
    """One brilliant expert doesn't carry a group; V2 lets it."""
    config = dataclasses.replace(
      _V3,
      num_experts=4,
      num_expert_groups=2,
      num_kept_groups=1,
      experts_per_token=2,
    )
    logits = np.array([[3.0, -9.0, 1.0, 1.0]], np.float32)
    bias = np.zeros(4, np.float32)
    top2 = _route(logits, bias, config)
    self.assertCountEqual(np.asarray(top2.experts_TA)[0].tolist(), [2, 3])
    best = dataclasses.replace(config, group_score='max')
    best = _route(logits, bias, best)
    self.assertCountEqual(np.asarray(best.experts_TA)[0].tolist(), [0, 1])

  def test_v2_scales_or_normalises(self):
    logits, bias = _logits(32, 20), np.zeros(32, np.float32)
    scaled = _route(logits, bias, _FAMILIES['v2'])
    chosen: np.ndarray = np.take_along_axis(
      np.asarray(scaled.scores_TE), np.asarray(scaled.experts_TA), axis=1
    )
    np.testing.assert_allclose(scaled.gates_TA, 16 * chosen, rtol=1e-6)
    normalised = _route(logits, bias, _FAMILIES['v2_normalising'])
    np.testing.assert_allclose(normalised.gates_TA.sum(axis=1), 1, rtol=1e-5)

  def test_scores_and_gates_are_float32_from_bfloat16_logits(self):
    routing = _route(jnp.bfloat16(_logits(32, 5)), _bias(_V3, 0.3), _V3)
    self.assertEqual(routing.scores_TE.dtype, jnp.float32)
    self.assertEqual(routing.gates_TA.dtype, jnp.float32)


class GradientTest(parameterized.TestCase):
  def test_gradient_flows_through_chosen_affinities_only(self):
    logits, bias = _logits(32, 20), _bias(_V3, 0.3)
    config = dataclasses.replace(_V3, normalize_gates=False)
    pull = np.random.default_rng(2).standard_normal((20, 8))

    def objective(logits, bias):
      return jnp.sum(router.route(logits, bias, config).gates_TA * pull)

    dlogits, dbias = cases.jit(jax.grad(objective, (0, 1)))(logits, bias)
    np.testing.assert_array_equal(dbias, np.zeros(32))
    experts = np.asarray(_route(logits, bias, config).experts_TA)
    expected = np.zeros((20, 32))
    score = 1 / (1 + np.exp(-np.float64(logits)))
    for t in range(20):
      for a, e in enumerate(experts[t]):
        expected[t, e] = 2.5 * pull[t, a] * score[t, e] * (1 - score[t, e])
    self.assertLess(cases.difference(dlogits, expected), 1e-5)


class BalanceTest(parameterized.TestCase):
  def test_sequence_balance_matches_oracle(self):
    rng = np.random.default_rng(3)
    scores = rng.uniform(0, 1, (3, 9, 8)).astype(np.float32)
    actual = cases.jit(router.sequence_balance, static_argnums=1)(scores, 3)
    expected = sum(oracle.sequence_balance(s, 3) for s in np.float64(scores))
    self.assertLess(cases.difference(actual, expected), 1e-5)

  def test_perfect_balance_is_one_per_sequence(self):
    scores = np.full((2, 8, 8), 0.1, np.float32)
    for i in range(8):
      scores[:, i, [i, (i + 1) % 8]] = 0.5
    actual = router.sequence_balance(jnp.asarray(scores), 2)
    self.assertAlmostEqual(float(actual), 2.0, places=5)

  def test_one_expert_for_all_costs_more(self):
    scores = np.full((1, 8, 8), 0.1, np.float32)
    scores[..., 0] = 0.9
    actual = router.sequence_balance(jnp.asarray(scores), 1)
    self.assertAlmostEqual(float(actual), 8 * 0.9 / 1.6, places=5)

  def test_gradient_takes_the_share_as_a_constant(self):
    rng = np.random.default_rng(4)
    scores = rng.uniform(0.1, 1, (2, 5, 6)).astype(np.float32)
    gradient = cases.jit(jax.grad(lambda s: router.sequence_balance(s, 2)))(
      scores
    )
    direction = rng.standard_normal(scores.shape)
    step = 1e-6  # too short to change a choice
    values = [
      sum(oracle.sequence_balance(s, 2) for s in scores + sign * direction)
      for sign in (step, -step)
    ]
    slope = (values[0] - values[1]) / (2 * step)
    self.assertAlmostEqual(
      float(np.sum(gradient * direction)), slope, delta=1e-4
    )


if __name__ == '__main__':
  absltest.main()
