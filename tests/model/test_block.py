"""Laws of one layer."""

from absl.testing import absltest
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seekax.configuration import presets
from seekax.model.block import Block


class BlockTest(absltest.TestCase):
  def test_in_bfloat16_the_norm_of_the_ffn_reads_the_exact_sum(self):
    config = presets.tiny()
    block = Block(config, use_experts=False)
    draw = jax.random.normal(jax.random.key(0), (2, 1, 8, config.embed_dim))
    # The second part is lost almost everywhere if the sum is rounded.
    x_BLD, y_BLD = draw.astype(jnp.bfloat16) * jnp.array(
      [1, 2**-9], jnp.bfloat16
    ).reshape(2, 1, 1, 1)
    positions_BL = jnp.arange(8)[None]
    params = block.init(jax.random.key(1), x_BLD, None, positions_BL, None)
    read = []

    def listen(call, args, kwargs, context):
      if context.module.name == 'ffn_norm':
        read.append(args[0])
      return call(*args, **kwargs)

    with nn.intercept_methods(listen):
      block.apply(params, x_BLD, y_BLD, None, method='_ffn')
    exact = np.asarray(x_BLD, np.float64) + np.asarray(y_BLD, np.float64)
    rounded = np.asarray(x_BLD + y_BLD, np.float64)
    [found] = read
    self.assertEqual(found.dtype, jnp.float32)
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    self.assertGreater((np.abs(rounded / exact - 1) > 1e-5).mean(), 0.9)


if __name__ == '__main__':
  absltest.main()
