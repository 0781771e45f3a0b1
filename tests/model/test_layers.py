"""Laws of the norm, the dense FFN and the embedding."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from reference import cases
from reference import layers as oracle
from seekax.model import layers


class LayersTest(absltest.TestCase):
  def test_rms_norm_matches_oracle(self):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 7)).astype(np.float32)
    scale = rng.standard_normal(7).astype(np.float32)
    expected = [oracle.rms_norm(row, scale, 0.3) for row in x.astype(float)]
    actual = cases.jit(layers.rms_norm)(x, scale, 0.3)
    self.assertLess(cases.difference(actual, expected), 1e-6)

  def test_rms_norm_rounds_once(self):
    rng = np.random.default_rng(1)
    x = jnp.bfloat16(rng.standard_normal((64, 40)))
    scale = (1 + 0.3 * rng.standard_normal(40)).astype(np.float32)
    norm = cases.jit(layers.rms_norm)
    exact = norm(x.astype(jnp.float32), scale, 1e-6)
    actual = norm(x, scale, 1e-6)
    self.assertEqual(actual.dtype, jnp.bfloat16)
    np.testing.assert_array_equal(actual, exact.astype(jnp.bfloat16))

  def test_swiglu_matches_oracle(self):
    rng = np.random.default_rng(2)
    shapes = ((2, 3, 5), (5, 7), (5, 7), (7, 5))
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    x, *weights = (a.astype(np.float64) for a in arrays)
    expected = [[oracle.swiglu(t, *weights) for t in row] for row in x]
    actual = cases.jit(layers.swiglu)(*arrays)
    self.assertLess(cases.difference(actual, expected), 1e-5)

  def test_embedding_is_not_scaled(self):
    table = np.random.default_rng(3).standard_normal((29, 24))
    tokens = np.array([[3, 28], [0, 3]])
    out = layers.Embedding(cases.V3).apply(
      {'params': {'table': np.float32(table)}}, tokens, 'float32'
    )
    np.testing.assert_array_equal(out, np.float32(table)[tokens])


if __name__ == '__main__':
  absltest.main()
