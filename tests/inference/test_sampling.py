"""Laws of sampling."""

from absl.testing import absltest, parameterized
import jax
import numpy as np

from reference import cases
from seekax.inference.sampling import sample

_sample = cases.jit(sample)

_ROWS = 4000
_PROBABILITY = np.array([0.08, 0.3, 0.02, 0.4, 0.15, 0.05])
_LOGITS = np.tile(np.log(_PROBABILITY), (_ROWS, 1)).astype(np.float32)


def _draw(temperature=1.0, top_p=1.0, seed=0, logits=_LOGITS):
  key = jax.random.key(seed)
  tokens = _sample(key, logits, np.float32(temperature), np.float32(top_p))
  return np.asarray(tokens)


class SamplingTest(parameterized.TestCase):
  def test_temperature_zero_is_greedy(self):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(_LOGITS.shape).astype(np.float32)
    tokens = _draw(0.0, 0.3, logits=logits)
    self.assertEqual(tokens.dtype, np.int32)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))

  @parameterized.parameters(1.0, 0.5, 2.0)
  def test_frequencies_follow_the_tempered_distribution(self, temperature):
    expected = _PROBABILITY ** (1 / temperature)
    expected /= expected.sum()
    counts = np.bincount(_draw(temperature), minlength=6)
    error = np.sqrt(_ROWS * expected * (1 - expected))
    # Six standard errors.
    self.assertLess(np.abs((counts - _ROWS * expected) / error).max(), 6)

  @parameterized.parameters(
    (0.0, {3}),
    (0.35, {3}),
    (0.5, {1, 3}),
    (0.69, {1, 3}),
    (0.75, {1, 3, 4}),
    (0.9, {0, 1, 3, 4}),
    (0.97, {0, 1, 3, 4, 5}),
    (1.0, {0, 1, 2, 3, 4, 5}),
  )
  def test_top_p_keeps_the_smallest_set_that_reaches_it(self, top_p, kept):
    tokens = _draw(1.0, top_p)
    self.assertEqual(set(tokens.tolist()), kept)
    kept = sorted(kept)
    expected = _PROBABILITY[kept] / _PROBABILITY[kept].sum()
    counts = np.bincount(tokens, minlength=6)[kept]
    error = np.sqrt(_ROWS * expected * (1 - expected)) + 1e-9
    self.assertLess(np.abs((counts - _ROWS * expected) / error).max(), 6)

  def test_rows_are_drawn_independently(self):
    tokens = _draw()
    same = np.mean(tokens[1:] == tokens[:-1])
    self.assertAlmostEqual(same, np.sum(_PROBABILITY**2), delta=0.05)


if __name__ == '__main__':
  absltest.main()
