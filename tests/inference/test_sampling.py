"""Laws of sampling."""

from absl.testing import absltest, parameterized
import jax
import numpy as np

from reference import cases
from seekax.configuration.errors import InputError
from seekax.inference import sampling

_sample = cases.jit(sampling.sample)

_ROWS = 4000
_PROBABILITY = np.array([0.08, 0.3, 0.02, 0.4, 0.15, 0.05])
_LOGITS = np.tile(np.log(_PROBABILITY), (_ROWS, 1)).astype(np.float32)


def _draw(temperature=1.0, seed=0, logits=_LOGITS, **filters):
  how = sampling.settings(len(logits), temperature, **filters)
  keys = jax.random.split(jax.random.key(seed), len(logits))
  tokens, _ = _sample(keys, logits, how)
  return np.asarray(tokens)


class SamplingTest(parameterized.TestCase):
  def test_temperature_zero_is_greedy(self):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(_LOGITS.shape).astype(np.float32)
    tokens = _draw(0.0, top_p=0.3, logits=logits)
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
    (0.01, {3}),
    (0.35, {3}),
    (0.5, {1, 3}),
    (0.69, {1, 3}),
    (0.75, {1, 3, 4}),
    (0.9, {0, 1, 3, 4}),
    (0.97, {0, 1, 3, 4, 5}),
    (1.0, {0, 1, 2, 3, 4, 5}),
  )
  def test_top_p_keeps_the_smallest_set_that_reaches_it(self, top_p, kept):
    self._check(_draw(1.0, top_p=top_p), kept)

  @parameterized.parameters(
    (dict(top_k=1), {3}),
    (dict(top_k=2), {1, 3}),
    (dict(top_k=6), {0, 1, 2, 3, 4, 5}),
    (dict(top_k=99), {0, 1, 2, 3, 4, 5}),
    (dict(min_p=1.0), {3}),
    (dict(min_p=0.3), {1, 3, 4}),
    (dict(min_p=0.1), {0, 1, 3, 4, 5}),
    # Of the two that top_k leaves the likelier one has 0.571.
    (dict(top_k=2, top_p=0.57), {3}),
    (dict(top_k=2, top_p=0.58), {1, 3}),
  )
  def test_filters_keep_the_likeliest(self, filters, kept):
    self._check(_draw(**filters), kept)

  def _check(self, tokens, kept):
    """Exactly these are drawn, in proportion to their probabilities."""
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

  def test_a_row_depends_on_its_own_key_and_settings_alone(self):
    how = sampling.Settings(
      np.array([1.0, 0.0, 2.0], np.float32),
      np.array([0, 3, 2], np.int32),
      np.array([0.9, 0.5, 1.0], np.float32),
      np.array([0.0, 0.2, 0.1], np.float32),
    )
    keys = sampling.keys([5, 5, 9])
    for _ in range(8):
      together, following = _sample(keys, _LOGITS[:3], how)
      for row in range(3):
        own = jax.tree.map(lambda x, row=row: x[row : row + 1], how)
        alone, _ = _sample(keys[row : row + 1], _LOGITS[:1], own)
        self.assertEqual(int(alone[0]), int(together[row]))
      keys = following

  @parameterized.parameters(
    dict(temperature=float('nan')),
    dict(temperature=float('inf')),
    dict(top_k=-1),
    dict(top_p=0.0),
    dict(top_p=float('nan')),
    dict(min_p=1.5),
  )
  def test_settings_that_can_not_be_are_refused(self, **changes):
    with self.assertRaises(InputError):
      sampling.settings(1, **changes)


if __name__ == '__main__':
  absltest.main()
