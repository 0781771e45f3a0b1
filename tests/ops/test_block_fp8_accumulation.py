"""The tensor cores' register agrees with the oracle to the bit."""

from absl.testing import absltest, parameterized
from hypothesis import given
import numpy as np

from reference import cases, sweeps
from reference import fp8 as oracle
from seekax.ops import block_fp8_accumulation as ops

_product = cases.jit(ops.product)
_promoted = cases.jit(ops.promoted_product, static_argnums=4)
_VALUES = np.array([oracle.value(code) for code in range(0x7F)], np.float32)


def _codes(rng, *shape) -> np.ndarray:
  """Values of E4M3 codes, all powers of two alike; some rows of zeros."""
  signs = rng.choice([-1, 1], shape)
  return (signs * rng.choice(_VALUES, shape)).astype(np.float32)


class AccumulationTest(parameterized.TestCase):
  @parameterized.parameters(1, 31, 32, 70, 256)
  @sweeps.SWEEP
  @given(seed=sweeps.seeds)
  def test_product_is_the_oracles(self, size, seed):
    rng = np.random.default_rng(seed)
    a, b = _codes(rng, 3, size), _codes(rng, size, 4)
    a[0, : size // 2] = 0
    expected = oracle.tensor_core_product(a, b)
    np.testing.assert_array_equal(_product(a, b), expected)

  @sweeps.SWEEP
  @given(seed=sweeps.seeds)
  def test_promotion_sums_parts_with_their_scales(self, seed):
    rng = np.random.default_rng(seed)
    a, b = _codes(rng, 3, 96), _codes(rng, 96, 4)
    scale_a = np.repeat(rng.random((3, 2)), (64, 32), 1).astype(np.float32)
    scale_b = np.repeat(rng.random((2, 4)), (64, 32), 0).astype(np.float32)
    expected = sum(
      oracle.tensor_core_product(a[:, part], b[part])
      * scale_a[:, part][:, :1]
      * scale_b[part][:1].astype(np.float64)
      for part in (slice(0, 64), slice(64, 96))
    )
    found = _promoted(a, b, scale_a, scale_b, 64)
    bound = 2.0**-21 * np.abs(expected) + 2.0**-22 * np.abs(expected).max()
    self.assertTrue(np.all(np.abs(found - expected) <= bound))

  def test_matrices_of_a_batch_are_multiplied_alone(self):
    rng = np.random.default_rng(0)
    a, b = _codes(rng, 2, 3, 40), _codes(rng, 2, 40, 4)
    for i in range(2):
      np.testing.assert_array_equal(_product(a, b)[i], _product(a[i], b[i]))

  def test_fourteen_bits_count_to_their_end(self):
    """On 28,672, whose last bit is worth 2, ones one by one are lost."""
    ones = np.ones((1, 2**14), np.float32)
    self.assertEqual(float(_product(ones, ones.T)[0, 0]), 2.0**14)
    one_by_one = np.zeros((1, 2048), np.float32)
    one_by_one[:, ::32] = 1
    a = np.concatenate([np.full((1, 32), 448, np.float32), one_by_one], axis=1)
    b = np.concatenate([np.full(32, 2), np.ones(2048)]).astype(np.float32)
    self.assertEqual(float(_product(a, b[:, None])[0, 0]), 448 * 2 * 32)

  def test_what_is_no_number_is_seen(self):
    a = np.ones((2, 40), np.float32)
    a[1, 35] = np.nan
    found = np.asarray(_product(a, np.ones((40, 3), np.float32)))
    np.testing.assert_array_equal(np.isnan(found), [[False] * 3, [True] * 3])


if __name__ == '__main__':
  absltest.main()
