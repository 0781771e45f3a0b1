"""Reductions in two steps give what one step gives."""

from absl.testing import absltest, parameterized
from hypothesis import given, settings, strategies
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases, sweeps
from reference.sweeps import normal
from seekax.ops import reductions

# A sum of n float32 terms is off by at most n - 1 roundings of 2**-24 of the
# sum of their sizes, in whatever order they are added; a square is one more.
_ROUNDING = 2.0**-24
_squares = cases.jit(lambda x: jax.value_and_grad(reductions.sum_of_squares)(x))
_sum = cases.jit(lambda x: reductions.reduce_rows(jnp.sum, x))
_max = cases.jit(lambda x: reductions.reduce_rows(jnp.max, x))
# Of one step, at both ends of two steps, and beyond.
_WIDTHS = (1, 31, 32, 33, 64, 96, 1024, 1056)
_sizes = strategies.sampled_from((1e-3, 1.0, 1e3))


class ReductionsTest(parameterized.TestCase):
  @parameterized.product(
    shape=(*((width,) for width in _WIDTHS), (3, 64), (0,))
  )
  @settings(sweeps.SWEEP, max_examples=6)
  @given(seed=sweeps.seeds, size=_sizes)
  def test_sum_of_squares(self, shape, seed, size):
    x = normal(np.random.default_rng(seed), 'float32', *shape)
    x *= np.float32(size)
    value, gradient = _squares(x)
    expected = np.sum(np.float64(x) ** 2)
    self.assertEqual((value.shape, value.dtype), ((), np.float32))
    bound = max(x.size, 1) * _ROUNDING * expected
    self.assertLessEqual(abs(float(value) - expected), bound)
    np.testing.assert_array_equal(gradient, 2 * x)

  @parameterized.parameters(*_WIDTHS)
  @settings(sweeps.SWEEP, max_examples=6)
  @given(seed=sweeps.seeds, size=_sizes)
  def test_rows(self, width, seed, size):
    x = normal(np.random.default_rng(seed), 'float32', 2, 3, width)
    x *= np.float32(size)
    np.testing.assert_array_equal(_max(x), x.max(axis=-1, keepdims=True))
    total, exact = np.float64(_sum(x)), np.float64(x)
    expected = exact.sum(axis=-1, keepdims=True)
    sizes = np.abs(exact).sum(axis=-1, keepdims=True)
    self.assertEqual(total.shape, (2, 3, 1))
    bound = (width - 1) * _ROUNDING * sizes
    self.assertTrue(np.all(np.abs(total - expected) <= bound))

  @parameterized.parameters(*sweeps.DTYPES)
  def test_the_largest_is_found_wherever_it_is(self, dtype):
    x = np.full((96, 96), -np.inf, sweeps.DTYPES[dtype])
    np.fill_diagonal(x, np.arange(96) - 50)
    np.testing.assert_array_equal(_max(x)[:, 0], np.diag(x))

  def test_nan_is_not_lost_in_a_sum(self):
    # Of a maximum that depends on the compiler: some of its CPU kernels drop it.
    x = np.ones((96, 96), np.float32)
    np.fill_diagonal(x, np.nan)
    for result in (_sum(x), _squares(x)[0]):
      self.assertTrue(np.isnan(result).all())


if __name__ == '__main__':
  absltest.main()
