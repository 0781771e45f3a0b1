"""Laws of rotary embedding and its context extensions."""

import dataclasses
import functools

from absl.testing import absltest, parameterized
from hypothesis import given, strategies
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases, sweeps
from reference import rotary as oracle
from reference.sweeps import normal
from seekax.configuration import presets
from seekax.ops import rotary

_rotate = cases.jit(rotary.rotate, static_argnums=2)


@functools.partial(cases.jit, static_argnums=2)
def _rotate_and_back(x, positions, config, dout):
  """The rotated array, and the gradient for `dout`."""
  out, pullback = jax.vjp(lambda x: rotary.rotate(x, positions, config), x)
  return out, *pullback(dout)


class LinearTest(absltest.TestCase):
  def test_positions_are_divided_by_the_factor(self):
    plain = dataclasses.replace(presets.tiny(), rope_scaling='none')
    linear = dataclasses.replace(plain, rope_scaling='linear', rope_factor=8.0)
    np.testing.assert_allclose(
      8 * rotary.inverse_frequencies(linear),
      rotary.inverse_frequencies(plain),
      rtol=1e-12,
    )
    self.assertEqual(rotary.table_scale(linear), 1)
    self.assertEqual(rotary.softmax_scale(linear), plain.qk_head_dim**-0.5)


class YarnValuesTest(parameterized.TestCase):
  """Numbers worked out by hand from the released configs."""

  @parameterized.parameters(
    (10, 0.0562341325),
    (11, 0.0390069266),
    (16, 0.0055),
    (20, 7.90569415e-4),
    (22, 1.77827941e-4),
    (31, 3.33380358e-6),
  )
  def test_v3_frequencies(self, pair, value):
    frequencies = rotary.inverse_frequencies(presets.v3_671b())
    self.assertAlmostEqual(frequencies[pair] / value, 1, delta=2e-9)

  def test_v3_ramp_begins_at_pair_10_and_ends_at_pair_23(self):
    v3 = presets.v3_671b()
    plain = v3.rope_theta ** (-np.arange(32) / 32)
    ratio = rotary.inverse_frequencies(v3) / plain
    np.testing.assert_allclose(ratio[:11], 1, rtol=1e-12)
    np.testing.assert_allclose(
      ratio[[11, 16, 20, 22]], [0.925, 0.55, 0.25, 0.1], rtol=1e-12
    )
    np.testing.assert_allclose(ratio[23:], 1 / 40, rtol=1e-12)

  def test_equal_betas_make_a_step(self):
    k2 = presets.kimi_k2()
    plain = k2.rope_theta ** (-np.arange(32) / 32)
    ratio = rotary.inverse_frequencies(k2) / plain
    np.testing.assert_allclose(ratio[:20], 1, rtol=1e-12)
    np.testing.assert_allclose(ratio[20:], 1 / 32, rtol=1e-12)

  def test_low_equal_to_high_is_a_step_and_not_nan(self):
    # low = high = 1: every pair above it is interpolated.
    config = dataclasses.replace(
      cases.V3,
      yarn_beta_fast=1.0,
      yarn_beta_slow=1.0,
      rope_original_length=int(2 * np.pi * 10) + 1,
      rope_theta=63 / (2 * np.pi),
      rope_head_dim=2,
    )
    frequencies = rotary.inverse_frequencies(config)
    self.assertTrue(np.isfinite(frequencies).all())
    np.testing.assert_allclose(
      frequencies, oracle.frequencies(config), rtol=1e-12
    )

  @parameterized.parameters(
    ('v3_671b', 1.8738542071, 0.1352337789),
    ('v2_lite', 1.5896261651, None),
  )
  def test_softmax_scale_has_m_squared(self, preset, m_squared, scale):
    config = presets.PRESETS[preset]()
    plain = 192**-0.5
    self.assertAlmostEqual(plain, 0.0721687836, delta=1e-10)
    value = rotary.softmax_scale(config)
    self.assertAlmostEqual(value / plain, m_squared, delta=1e-9)
    if scale:
      self.assertAlmostEqual(value, scale, delta=1e-10)

  def test_m_of_v3_and_v2_lite(self):
    for config, m in (
      (presets.v3_671b(), 1.3688879454),
      (presets.v2_lite(), 1.2608037774),
    ):
      ratio = rotary.softmax_scale(config) * 192**0.5
      self.assertAlmostEqual(ratio**0.5, m, delta=1e-9)

  @parameterized.parameters('v3_671b', 'v2', 'v2_lite', 'kimi_k2')
  def test_tables_of_the_released_models_are_not_scaled(self, preset):
    self.assertEqual(rotary.table_scale(presets.PRESETS[preset]()), 1.0)

  @parameterized.parameters('moonlight', 'llama3_8b')
  def test_no_yarn_no_m_squared(self, preset):
    config = presets.PRESETS[preset]()
    width = config.nope_head_dim + config.rope_head_dim
    self.assertEqual(rotary.softmax_scale(config), width**-0.5)
    self.assertEqual(rotary.table_scale(config), 1.0)

  @parameterized.parameters({'rope_factor': 1.0}, {'yarn_mscale_all_dim': 0.0})
  def test_m_is_one(self, **change):
    config = dataclasses.replace(presets.v3_671b(), **change)
    self.assertAlmostEqual(rotary.softmax_scale(config), 192**-0.5)


class LawsTest(parameterized.TestCase):
  @parameterized.parameters(*cases.MODELS)
  def test_scales_and_frequencies_match_oracle(self, name):
    config = cases.MODELS[name]
    np.testing.assert_allclose(
      rotary.inverse_frequencies(config),
      oracle.frequencies(config),
      rtol=1e-12,
    )
    self.assertAlmostEqual(
      rotary.softmax_scale(config), oracle.softmax_scale(config), places=12
    )
    self.assertAlmostEqual(
      rotary.table_scale(config), oracle.table_factor(config), places=12
    )

  @parameterized.product(
    preset=tuple(presets.PRESETS),
  )
  def test_frequencies_of_presets_match_oracle(self, preset):
    config = presets.PRESETS[preset]()
    np.testing.assert_allclose(
      rotary.inverse_frequencies(config),
      oracle.frequencies(config),
      rtol=1e-12,
    )

  @parameterized.product(
    layout=('interleaved', 'half'),
    scaling=('none', 'yarn', 'llama3'),
    heads=(0, 3),
  )
  def test_rotation_matches_oracle(self, layout, scaling, heads):
    config = dataclasses.replace(
      cases.V3, rope_layout=layout, rope_scaling=scaling
    )
    rng = np.random.default_rng(0)
    shape = (2, 5, heads, 8) if heads else (2, 5, 8)
    x = rng.standard_normal(shape).astype(np.float32)
    positions = np.array([[0, 1, 7, 30, 63], [3, 2, 9, 9, 50]], np.int32)
    expected = np.zeros(shape)
    for index in np.ndindex(shape[:-1]):
      expected[index] = oracle.rotate(
        x[index].astype(np.float64), positions[index[:2]], config
      )
    actual = _rotate(x, positions, config)
    self.assertLess(cases.difference(actual, expected), 1e-5)

  @parameterized.product(
    layout=('interleaved', 'half'), dtype=tuple(sweeps.DTYPES)
  )
  @sweeps.SWEEP
  @given(
    # Of up to 63 radians an angle is off by 63 * 2**-23 or so in float32; in
    # bfloat16 the result is rounded besides.
    positions=strategies.lists(
      strategies.integers(0, 63), min_size=10, max_size=10
    ),
    seed=sweeps.seeds,
  )
  def test_any_positions(self, layout, dtype, positions, seed):
    config = dataclasses.replace(cases.V3, rope_layout=layout)
    rng = np.random.default_rng(seed)
    x, dout = (normal(rng, dtype, 2, 5, 3, 8) for _ in range(2))
    positions = np.array(positions, np.int32).reshape(2, 5)
    actual = _rotate_and_back(x, positions, config, dout)
    expected = np.zeros((2, *x.shape))
    for index in np.ndindex(2, 5):
      # Column r is what becomes of the unit vector r.
      turn = np.stack(
        [oracle.rotate(unit, positions[index], config) for unit in np.eye(8)],
        axis=1,
      )
      expected[0][index] = np.float64(x[index]) @ turn.T
      expected[1][index] = np.float64(dout[index]) @ turn
    for a, e in zip(actual, expected, strict=True):
      self.assertEqual(a.dtype, sweeps.DTYPES[dtype])
      self.assertLess(cases.difference(a, e), sweeps.bounds(1)[dtype])

  @parameterized.parameters('interleaved', 'half')
  def test_the_gradient_is_what_jax_derives(self, layout):
    """Of the plain formula, pair by pair."""
    config = dataclasses.replace(cases.V3, rope_layout=layout)
    rng = np.random.default_rng(4)
    x, dout = (normal(rng, 'float32', 2, 5, 3, 8) for _ in range(2))
    positions = rng.integers(0, 63, (2, 5)).astype(np.int32)
    frequencies = rotary.inverse_frequencies(config).astype(np.float32)
    angles = (positions[..., None].astype(np.float32) * frequencies)[:, :, None]

    def plain(x):
      ways = (slice(0, 8, 2), slice(1, 8, 2))
      if layout == 'half':
        ways = (slice(0, 4), slice(4, 8))
      a, b = (x[..., way] for way in ways)
      scale = rotary.table_scale(config)
      cos, sin = jnp.cos(angles) * scale, jnp.sin(angles) * scale
      out = jnp.zeros_like(x).at[..., ways[0]].set(a * cos - b * sin)
      return out.at[..., ways[1]].set(a * sin + b * cos)

    (gradient,) = jax.vjp(plain, x)[1](dout)
    ours = _rotate_and_back(x, positions, config, dout)[1]
    self.assertLess(cases.difference(ours, gradient), 1e-6)

  def test_interleaved_and_permuted_half_give_the_same_scores(self):
    interleaved = cases.V3
    half = dataclasses.replace(interleaved, rope_layout='half')
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 1, 6, 8)).astype(np.float32)
    positions = np.arange(4, 10, dtype=np.int32)[None]
    # Evens first, then odds.
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def scores(config, order):
      turned = [_rotate(x[..., order], positions, config)[0] for x in (q, k)]
      return np.asarray(turned[0]) @ np.asarray(turned[1]).T

    expected = scores(interleaved, list(range(8)))
    self.assertLess(cases.difference(scores(half, order), expected), 1e-5)
    unpermuted = scores(half, list(range(8)))
    self.assertGreater(cases.difference(unpermuted, expected), 1e-2)

  def test_scores_depend_on_distance_only(self):
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 1, 1, 8)).astype(np.float32)

    def score(i, j):
      turned = [
        _rotate(x, np.array([[at]], np.int32), cases.V3)[0, 0]
        for x, at in ((q, i), (k, j))
      ]
      return float(np.dot(*turned))

    self.assertAlmostEqual(score(9, 4), score(25, 20), delta=1e-5)
    self.assertGreater(abs(score(9, 4) - score(9, 5)), 1e-3)

  def test_rotation_keeps_the_dtype_and_is_computed_in_float32(self):
    x = np.random.default_rng(3).standard_normal((1, 4, 8))
    positions = np.array([[10, 11, 60, 63]], np.int32)
    x16 = jax.numpy.asarray(x, jax.numpy.bfloat16)
    turned = _rotate(x16, positions, cases.V3)
    self.assertEqual(turned.dtype, jax.numpy.bfloat16)
    exact = _rotate(x16.astype(jax.numpy.float32), positions, cases.V3)
    np.testing.assert_array_equal(turned, exact.astype(jax.numpy.bfloat16))


if __name__ == '__main__':
  absltest.main()
