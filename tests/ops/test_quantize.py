"""A weight that stays FP8 is the same matrix, however its axes are split."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from seekax.ops.quantize import BlockScaled, expand
from seekax.storage import fp8

E4M3 = ml_dtypes.float8_e4m3fn


def draw(
  lead, inputs, outputs, dtype, seed=0
) -> tuple[BlockScaled, np.ndarray]:
  """Random codes and scales, and what storage makes of each matrix."""
  rng = np.random.default_rng(seed)
  i, o = int(np.prod(inputs)), int(np.prod(outputs))
  count = int(np.prod(lead))
  codes = rng.integers(0, 256, (count, o, i), dtype=np.uint8)
  codes[codes & 0x7F == 0x7F] = 3
  scales = 10 ** rng.uniform(-4, 1, (count, *fp8.scale_shape((o, i))))
  scales = scales.astype(np.float32)
  expected = [
    fp8.dequantize(c.view(E4M3), s, jnp.dtype(dtype)).T
    for c, s in zip(codes, scales, strict=True)
  ]
  weight = BlockScaled(
    jnp.asarray(codes.swapaxes(1, 2).reshape(*lead, *inputs, *outputs)),
    jnp.asarray(scales.swapaxes(1, 2).reshape(*lead, *fp8.scale_shape((i, o)))),
    len(inputs),
    len(outputs),
    dtype,
  )
  return weight, np.stack(expected).reshape(*lead, *inputs, *outputs)


class ExpandTest(parameterized.TestCase):
  @parameterized.product(
    split=(
      ((), (160,), (576,)),  # kv_down [D, C+R]
      ((), (140,), (3, 50)),  # query_up, kv_up [C, H, X]
      ((), (4, 40), (130,)),  # out [H, U, D]
      ((3,), (4, 40), (130,)),  # a stack of layers
      ((2, 3), (130,), (140,)),  # layers of experts [N, E, D, F]
      ((), (1,), (1,)),
      ((), (128,), (256,)),
    ),
    dtype=('float32', 'bfloat16'),
  )
  def test_it_is_what_storage_dequantizes(self, split, dtype):
    weight, expected = draw(*split, dtype)
    for found in (expand(weight), jax.jit(expand)(weight)):
      self.assertEqual(found.dtype, jnp.dtype(dtype))
      self.assertEqual(found.shape, expected.shape)
      np.testing.assert_array_equal(
        np.asarray(found, np.float32), expected.astype(np.float32)
      )

  def test_every_code_has_its_value(self):
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    weight = BlockScaled(jnp.asarray(codes), jnp.ones((1, 1)), 1, 1, 'float32')
    np.testing.assert_array_equal(
      np.asarray(expand(weight)), codes.view(E4M3).astype(np.float32)
    )

  def test_a_layer_of_a_stack_is_that_layers_weight(self):
    weight, expected = draw((3,), (4, 40), (130,), 'float32')

    def layer(carry, one):
      return carry, expand(one)

    _, found = jax.lax.scan(layer, 0, weight)
    np.testing.assert_array_equal(np.asarray(found), expected)

  def test_an_array_is_given_back_as_it_is(self):
    array = jnp.ones((2, 3))
    self.assertIs(expand(array), array)

  def test_it_takes_a_quarter_of_the_bytes(self):
    weight, expected = draw((2, 3), (256,), (384,), 'float32')
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(weight))
    self.assertLess(stored, expected.nbytes / 4 * 1.001)


if __name__ == '__main__':
  absltest.main()
