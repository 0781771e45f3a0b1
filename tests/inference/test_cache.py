"""Laws of the cache: its size, and that decoding on it changes nothing."""

import dataclasses
import math

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases
from seekax.configuration import presets
from seekax.inference import engine
from seekax.inference.cache import Cache, fill, init_cache
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights
from seekax.planning.memory import cache_bytes_per_token


def _bytes(config, batch_size, length) -> int:
  cache = jax.eval_shape(
    lambda: init_cache(Transformer(config), batch_size, length, jnp.bfloat16)
  )
  leaves = jax.tree.leaves(cache.layers)
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


class SizeTest(parameterized.TestCase):
  def test_v3_keeps_70272_bytes_per_token(self):
    self.assertEqual(_bytes(presets.v3_671b(), 1, 1), 70_272)

  @parameterized.parameters(*presets.PRESETS)
  def test_cache_is_as_large_as_planned(self, name):
    config = presets.PRESETS[name]()
    self.assertEqual(_bytes(config, 3, 7), 21 * cache_bytes_per_token(config))


# The engine's own functions, compiled for the tests.
_prefill = cases.jit(engine.prefill, static_argnums=(0, 4))
_decode = cases.jit(engine.decode, static_argnums=0)


class DecodeTest(parameterized.TestCase):
  @parameterized.parameters(cases.V3_ONE_MTP, cases.LLAMA)
  def test_cached_decoding_equals_the_full_model_at_every_position(
    self, config
  ):
    """Requests of different lengths, prefilled together, then decoded."""
    params, bias = cases.weights(config, 1)
    rows = cases.batch(config)
    rows = dataclasses.replace(
      rows,
      positions_BL=np.tile(np.arange(cases.LENGTH, dtype=np.int32), (2, 1)),
    )
    one = np.ones_like(rows.segments_BL)
    full = np.asarray(cases.run(config, params, bias, rows, one).logits_BLV)
    lengths = np.array([5, 2], np.int32)
    # What stands behind a prompt is padding, here other tokens.
    prompts = rows.tokens_BL[:, :5].copy()
    prompts[1, 2:] = 7
    model, weights = Transformer(config), Weights(params, bias)
    logits, cache = _prefill(model, weights, prompts, lengths, 13)
    each = np.arange(2)
    self.assertLess(cases.difference(logits, full[each, lengths - 1]), 1e-5)
    for _ in range(cases.LENGTH - 5):
      tokens = rows.tokens_BL[each, lengths]
      logits, cache = _decode(model, weights, tokens, cache)
      self.assertLess(cases.difference(logits, full[each, lengths]), 1e-5)
      lengths = lengths + 1
      np.testing.assert_array_equal(cache.lengths_B, lengths)
    self.assertEqual(lengths.tolist(), [12, 9])


class FillTest(absltest.TestCase):
  def test_entries_stand_at_the_start(self):
    config = cases.LLAMA
    cache = init_cache(Transformer(config), 2, 6, jnp.bfloat16)
    entries = jax.tree.map(
      lambda x: jnp.ones((x.shape[0], 4, *x.shape[2:])), cache.layers
    )
    filled = fill(cache, entries, jnp.array([4, 2]))
    self.assertIsInstance(filled, Cache)
    for leaf in jax.tree.leaves(filled.layers):
      self.assertEqual(leaf.dtype, jnp.bfloat16)
      self.assertTrue((leaf[:, :4] == 1).all())
      self.assertFalse(leaf[:, 4:].any())


if __name__ == '__main__':
  absltest.main()
