"""Laws of the attention functions."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np

from reference import attention as oracle
from reference import cases
from seekax.ops import attention

_SCALE = 0.37
_causal = cases.jit(attention.causal_attention, static_argnums=3)
_cached = cases.jit(attention.cached_attention, static_argnums=4)
_latent = cases.jit(attention.latent_attention, static_argnums=5)


def _inputs(heads, kv_heads, length=11, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  return [
    rng.standard_normal((batch, length, count, width)).astype(np.float32)
    for count, width in ((heads, 6), (kv_heads, 6), (kv_heads, 4))
  ]


_SEGMENTS = np.array(
  [[1, 1, 1, 2, 2, 3, 4, 4, 4, 4, 4], [1] * 10 + [2]], np.int32
)


class CausalAttentionTest(parameterized.TestCase):
  @parameterized.product(kv_heads=(1, 2, 4), isolate=(False, True))
  def test_causal_attention_matches_oracle(self, kv_heads, isolate):
    q, k, v = _inputs(4, kv_heads)
    segments = _SEGMENTS if isolate else None
    expected = [
      oracle.attend(
        *(x[b].astype(np.float64) for x in (q, k, v)),
        _SCALE,
        _SEGMENTS[b] if isolate else None,
      )
      for b in range(2)
    ]
    actual = _causal(q, k, v, _SCALE, segments)
    self.assertLess(cases.difference(actual, expected), 1e-5)

  def test_segments_isolate(self):
    q, k, v = _inputs(4, 2)
    whole = _causal(q, k, v, _SCALE, _SEGMENTS)
    alone = _causal(
      *(x[:, 3:5] for x in (q, k, v)), _SCALE, np.ones((2, 2), np.int32)
    )
    self.assertLess(cases.difference(whole[:1, 3:5], alone[:1]), 1e-6)
    # What another document holds, however large, changes nothing.
    poisoned = [x.copy() for x in (k, v)]
    for x in poisoned:
      x[0, :3] = 1e9
    other = _causal(q, *poisoned, _SCALE, _SEGMENTS)
    np.testing.assert_array_equal(other[0, 3:], whole[0, 3:])

  @parameterized.parameters(False, True)
  def test_query_blocks_do_not_matter(self, isolate):
    length = 300
    self.assertGreater(length, 2 * attention.QUERY_BLOCK)
    q, k, v = _inputs(2, 1, length, batch=1)
    segments = None
    if isolate:
      rng = np.random.default_rng(4)
      segments = 1 + np.cumsum(rng.random((1, length)) < 0.01, axis=1)
    blocks = _causal(q, k, v, _SCALE, segments)
    with mock.patch.object(attention, 'QUERY_BLOCK', length):
      one = cases.jit(
        lambda *x: attention.causal_attention(*x, _SCALE, segments)
      )(q, k, v)
    self.assertLess(cases.difference(blocks, one), 1e-6)

  def test_later_keys_and_values_change_nothing(self):
    q, k, v = _inputs(4, 2)
    before = _causal(q, k, v, _SCALE)
    for x in (k, v):
      x[:, 7:] = 1e9
    after = _causal(q, k, v, _SCALE)
    np.testing.assert_array_equal(after[:, :7], before[:, :7])

  def test_logits_and_softmax_are_float32_under_bfloat16(self):
    # 256.0 and 257.0 are one bfloat16 number, but not one logit.
    q = jnp.ones((1, 2, 1, 257), jnp.bfloat16)
    k = jnp.ones((1, 2, 1, 257), jnp.bfloat16).at[0, 0, 0, 0].set(0)
    v = jnp.array([[[[0.0]], [[1.0]]]], jnp.bfloat16)
    out = _causal(q, k, v, 1.0)
    weight = 1 / (1 + np.exp(-1.0))
    self.assertAlmostEqual(float(out[0, 1, 0, 0]), weight, delta=4e-3)


class CachedAttentionTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_cached_attention_is_the_last_row_of_causal(self, kv_heads):
    q, k, v = _inputs(4, kv_heads)
    whole = _causal(q, k, v, _SCALE)
    lengths = np.array([11, 6], np.int32)
    last = q[np.arange(2), lengths - 1]
    # Whatever lies behind the valid positions is not read.
    k[1, 6:], v[1, 6:] = 1e9, 1e9
    out = _cached(last, k, v, lengths, _SCALE)
    expected = np.asarray(whole)[np.arange(2), lengths - 1]
    self.assertLess(cases.difference(out, expected), 1e-6)

  def test_latent_attention_is_one_key_head_of_latent_and_rope(self):
    rng = np.random.default_rng(5)
    q_latent, q_rope = (rng.standard_normal((2, 3, w)) for w in (7, 4))
    latent, k_rope = (rng.standard_normal((2, 9, w)) for w in (7, 4))
    lengths = np.array([9, 4], np.int32)
    arrays = [x.astype(np.float32) for x in (q_latent, q_rope, latent, k_rope)]
    out = _latent(*arrays, lengths, _SCALE)
    expected = _cached(
      np.concatenate(arrays[:2], axis=-1),
      np.concatenate(arrays[2:], axis=-1)[:, :, None],
      arrays[2][:, :, None],
      lengths,
      _SCALE,
    )
    self.assertLess(cases.difference(out, expected), 1e-6)


if __name__ == '__main__':
  absltest.main()
