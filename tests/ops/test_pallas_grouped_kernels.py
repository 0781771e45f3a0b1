"""The grouped kernels on their own, run step by step on the CPU."""

from absl.testing import absltest
import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from reference import cases
from reference import experts as oracle
from reference.sweeps import float64, normal
from seekax.ops import pallas_grouped_kernels as kernels


class KernelsTest(absltest.TestCase):
  def test_what_no_program_writes_is_nan_in_these_tests(self):
    out = pl.pallas_call(
      lambda ref: None,
      out_shape=jax.ShapeDtypeStruct((4,), jnp.float32),
      interpret=True,
    )()
    self.assertTrue(np.isnan(out).all())

  def test_weight_gradient_is_float32_of_bfloat16_rows(self):
    rng = np.random.default_rng(4)
    x, dy = (
      normal(rng, 'bfloat16', 60, 20),
      normal(rng, 'bfloat16', 60, 24),
    )
    sizes = np.array((20, 0, 40), np.int32)
    dw = kernels.weight_gradient(x, dy, sizes, interpret=True)
    self.assertEqual(dw.dtype, jnp.float32)
    expected = oracle.grouped_matmul_gradients(
      *float64(x, np.zeros((3, 20, 24))), sizes, *float64(dy)
    )[1]
    self.assertLess(cases.difference(dw, expected), 1e-6)


if __name__ == '__main__':
  absltest.main()
