"""Laws of the attention modules."""

import dataclasses
import functools

from absl.testing import absltest, parameterized
import jax
import numpy as np

from reference import attention as oracle
from reference import cases, transformer
from seekax.model.attention import (
  attention_module,
  LatentCache,
  mla_absorbed,
  mla_full,
)

_MODELS = {
  'mla': cases.V3,
  'mla_without_query_latent': cases.V2,
  'gqa': cases.LLAMA,
  'mha': dataclasses.replace(cases.LLAMA, attention='mha'),
  'mqa': dataclasses.replace(cases.LLAMA, attention='mqa'),
  # Part of every head without position, as in MLA's own comparisons.
  'gqa_partly_rotary': dataclasses.replace(
    cases.LLAMA, nope_head_dim=4, value_head_dim=5, rope_scaling='yarn'
  ),
}

_SEGMENTS = np.array([[1, 1, 2, 2, 2, 3, 3], [1, 1, 1, 1, 1, 1, 2]], np.int32)


@functools.partial(cases.jit, static_argnums=0)
def _attend(config, params, x, positions, segments):
  module = attention_module(config)
  return module.apply({'params': params}, x, positions, segments)


def _weights(config):
  params, _ = cases.weights(config, seed=3)
  stack = 'dense_layers'
  return jax.tree.map(lambda w: w[0], params[stack]['attention'])


def _inputs(config):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 7, config.embed_dim)).astype(np.float32)
  positions = np.array([np.arange(3, 10), np.arange(20, 27)], np.int32)
  return x, positions


class AttentionTest(parameterized.TestCase):
  @parameterized.parameters(*_MODELS)
  def test_attention_matches_oracle(self, name):
    config = _MODELS[name]
    params, (x, positions) = _weights(config), _inputs(config)
    y, _ = _attend(config, params, x, positions, _SEGMENTS)
    kind = oracle.mla if config.attention == 'mla' else oracle.grouped
    expected = [
      kind(
        x[b].astype(np.float64),
        positions[b],
        _SEGMENTS[b],
        transformer.to_float64(params),
        config,
      )
      for b in range(2)
    ]
    self.assertLess(cases.difference(y, expected), 1e-5)

  @parameterized.parameters('mla', 'gqa')
  def test_shifted_positions_change_nothing(self, name):
    config = _MODELS[name]
    params, (x, positions) = _weights(config), _inputs(config)
    y, _ = _attend(config, params, x, positions, _SEGMENTS)
    shifted, _ = _attend(config, params, x, positions + 11, _SEGMENTS)
    self.assertLess(cases.difference(shifted, y), 1e-5)

  def test_latent_cache_holds_the_normed_latent_and_the_rotated_key(self):
    config = cases.V3
    params, (x, positions) = _weights(config), _inputs(config)
    _, cache = _attend(config, params, x, positions, _SEGMENTS)
    self.assertEqual(cache.latent.shape, (2, 7, config.kv_latent_dim))
    self.assertEqual(cache.k_rope.shape, (2, 7, config.rope_head_dim))
    # Undoing the gain leaves a root mean square of 1 less the epsilon.
    plain = np.asarray(cache.latent) / params['kv_norm']['scale']
    mean_square = np.mean(plain**2, axis=-1)
    self.assertTrue((mean_square < 1).all() and (mean_square > 0.9).all())
    later = _attend(config, params, x, positions + 1, _SEGMENTS)[1]
    np.testing.assert_array_equal(later.latent, cache.latent)
    self.assertGreater(cases.difference(later.k_rope, cache.k_rope), 1e-2)


class AbsorbedTest(parameterized.TestCase):
  def test_absorbed_matches_full_at_the_last_position(self):
    config, rng = cases.V3, np.random.default_rng(1)
    heads, length = config.num_heads, 9

    def normal(*shape):
      return rng.standard_normal(shape).astype(np.float32)

    q_nope = normal(2, length, heads, config.nope_head_dim)
    q_rope = normal(2, length, heads, config.rope_head_dim)
    latent = normal(2, length, config.kv_latent_dim)
    k_rope = normal(2, length, config.rope_head_dim)
    widths = config.nope_head_dim + config.value_head_dim
    kv_up = normal(config.kv_latent_dim, heads, widths)
    full = cases.jit(mla_full, static_argnums=6)(
      q_nope, q_rope, latent, k_rope, kv_up, None, config
    )
    lengths = np.array([length, 4], np.int32)
    rows = np.arange(2)
    absorbed = cases.jit(mla_absorbed, static_argnums=5)(
      q_nope[rows, lengths - 1],
      q_rope[rows, lengths - 1],
      LatentCache(latent, k_rope),
      kv_up,
      lengths,
      config,
    )
    expected = np.asarray(full)[rows, lengths - 1]
    self.assertLess(cases.difference(absorbed, expected), 1e-5)


if __name__ == '__main__':
  absltest.main()
