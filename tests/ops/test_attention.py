"""Laws of the attention functions."""

import functools
from unittest import mock

from absl.testing import absltest, parameterized
from hypothesis import given, settings, strategies
import jax
import jax.numpy as jnp
import numpy as np

from reference import attention as oracle
from reference import cases, sweeps
from reference.sweeps import float64, normal
from seekax.ops import attention

_SCALE = 0.37
# The softmax's weights and the result are rounded; of gradients also those of
# the weights and of the logits, and what is divided by the softmax's sums.
_FORWARD = sweeps.bounds(2)
_GRADIENTS = sweeps.bounds(5)
_causal = cases.jit(attention.causal_attention, static_argnums=3)
_cached = cases.jit(attention.cached_attention, static_argnums=4)
_latent = cases.jit(attention.latent_attention, static_argnums=5)
_BLOCK = 8


@functools.partial(cases.jit, static_argnums=(0, 1))
def _with_gradients(backend, kept, q, k, v, segments, dout):
  """In blocks of 8 queries; `chunked` keeps the weights or makes them again."""

  def run(q, k, v):
    return attention.causal_attention(
      q, k, v, _SCALE, segments, backend, keep_weights=kept
    )

  with mock.patch.object(attention, 'QUERY_BLOCK', _BLOCK):
    out, pullback = jax.vjp(run, q, k, v)
  return out, *pullback(dout)


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
    # Copies: a jitted call may still be reading the arrays it was given.
    poisoned = [x.copy() for x in (k, v)]
    for x in poisoned:
      x[:, 7:] = 1e9
    after = _causal(q, *poisoned, _SCALE)
    np.testing.assert_array_equal(after[:, :7], before[:, :7])

  def test_logits_and_softmax_are_float32_under_bfloat16(self):
    # 256.0 and 257.0 are one bfloat16 number, but not one logit.
    q = jnp.ones((1, 2, 1, 257), jnp.bfloat16)
    k = jnp.ones((1, 2, 1, 257), jnp.bfloat16).at[0, 0, 0, 0].set(0)
    v = jnp.array([[[[0.0]], [[1.0]]]], jnp.bfloat16)
    out = _causal(q, k, v, 1.0)
    weight = 1 / (1 + np.exp(-1.0))
    self.assertAlmostEqual(float(out[0, 1, 0, 0]), weight, delta=4e-3)


class SweepTest(parameterized.TestCase):
  """Every form, against float64."""

  def _check(self, form, length, heads, dtype, segments, seed):
    rng = np.random.default_rng(seed)
    widths = (heads[0], 6), (heads[1], 6), (heads[1], 5), (heads[0], 5)
    q, k, v, dout = (normal(rng, dtype, 2, length, *w) for w in widths)
    actual = _with_gradients(*form, q, k, v, segments, dout)
    q, k, v, dout = float64(q, k, v, dout)
    expected = []
    for b in range(2):
      inputs = q[b], k[b], v[b], _SCALE
      own = None if segments is None else segments[b]
      out = oracle.attend(*inputs, own)
      expected.append((out, *oracle.attend_gradients(*inputs, own, dout[b])))
    bound = _FORWARD
    for name, a, e in zip(
      ('output', 'q', 'k', 'v'),
      actual,
      zip(*expected, strict=True),
      strict=True,
    ):
      self.assertEqual(a.dtype, sweeps.DTYPES[dtype])
      self.assertLess(cases.difference(a, e), bound[dtype], name)
      bound = _GRADIENTS

  def _any_documents(self, form, length, heads, dtype):
    # The other row is one document: it sets the size of the largest entry.
    # Documents of one position have gradients of 0 and errors of their parts.
    @sweeps.SWEEP
    @given(numbers=sweeps.documents(length), seed=sweeps.seeds)
    def check(numbers, seed):
      segments = np.stack([np.ones_like(numbers), numbers])
      self._check(form, length, heads, dtype, segments, seed)

    check()

  @parameterized.parameters(
    # One block, attended to as a whole; one more; whole blocks; one less.
    (('chunked', True), 8, (4, 2), 'float32'),
    (('chunked', True), 9, (4, 1), 'float32'),
    (('chunked', False), 24, (3, 3), 'float32'),
    (('chunked', False), 23, (4, 2), 'float32'),
    (('chunked', True), 23, (4, 2), 'bfloat16'),
    (('chunked', False), 23, (4, 2), 'bfloat16'),
    (('plain', True), 13, (4, 2), 'float32'),
    (('plain', True), 13, (4, 2), 'bfloat16'),
  )
  def test_any_documents(self, form, length, heads, dtype):
    self._any_documents(form, length, heads, dtype)

  @parameterized.parameters(
    (('chunked', False), 17, (4, 2), 'float32'),
    (('plain', True), 13, (4, 4), 'bfloat16'),
  )
  @settings(sweeps.SWEEP, max_examples=4)
  @given(seed=sweeps.seeds)
  def test_without_documents(self, form, length, heads, dtype, seed):
    self._check(form, length, heads, dtype, None, seed)

  @parameterized.parameters(
    (('chunked', True), 9, (4, 1)), (('chunked', False), 23, (4, 2))
  )
  def test_what_other_documents_hold_changes_no_gradient(
    self, form, length, heads
  ):
    """However large. Not NaN: weights of 0 are multiplied, not skipped."""
    rng = np.random.default_rng(3)
    widths = (heads[0], 6), (heads[1], 6), (heads[1], 5), (heads[0], 5)
    q, k, v, dout = (normal(rng, 'float32', 2, length, *w) for w in widths)
    segments = np.repeat([[1, 2, 3]] * 2, (3, length - 4, 1), axis=1)
    own, segments = slice(3, length - 1), segments.astype(np.int32)
    clean = _with_gradients(*form, q, k, v, segments, dout)
    for x in (k, v):
      x[:, :3], x[:, -1:] = 1e9, -1e9
    poisoned = _with_gradients(*form, q, k, v, segments, dout)
    for a, b in zip(poisoned, clean, strict=True):
      np.testing.assert_array_equal(a[:, own], b[:, own])

  def test_gradients_by_hand_are_slopes(self):
    rng = np.random.default_rng(4)
    shapes = (7, 4, 6), (7, 2, 6), (7, 2, 5)
    inputs = [rng.standard_normal(shape) for shape in shapes]
    dout = rng.standard_normal((7, 4, 5))
    segments = np.array([1, 1, 2, 2, 1, 3, 2])
    gradients = oracle.attend_gradients(*inputs, _SCALE, segments, dout)
    for index, gradient in enumerate(gradients):
      direction, values = rng.standard_normal(shapes[index]), []
      for step in (1e-5, -1e-5):
        moved = list(inputs)
        moved[index] = inputs[index] + step * direction
        values.append(np.sum(oracle.attend(*moved, _SCALE, segments) * dout))
      slope = (values[0] - values[1]) / 2e-5
      along = np.sum(gradient * direction)
      self.assertAlmostEqual(along / slope, 1, delta=1e-6)


_LENGTHS = strategies.lists(strategies.integers(1, 40), min_size=3, max_size=3)


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

  @parameterized.product(dtype=tuple(sweeps.DTYPES), kv_heads=(1, 2))
  @sweeps.SWEEP
  @given(lengths=_LENGTHS, seed=sweeps.seeds)
  def test_any_lengths_of_requests(self, dtype, kv_heads, lengths, seed):
    rng = np.random.default_rng(seed)
    q = normal(rng, dtype, 3, 4, 6)
    k, v = (normal(rng, dtype, 3, 40, kv_heads, width) for width in (6, 5))
    expected = [
      oracle.attend_last(*float64(q[b], k[b, :n], v[b, :n]), _SCALE)
      for b, n in enumerate(lengths)
    ]
    for b, n in enumerate(lengths):
      # A key that isn't seen may be anything; a value is multiplied by 0.
      k[b, n:], v[b, n:] = np.nan, 1e9
    out = _cached(q, k, v, np.array(lengths, np.int32), _SCALE)
    self.assertEqual(out.dtype, sweeps.DTYPES[dtype])
    self.assertLess(cases.difference(out, expected), _FORWARD[dtype])

  @parameterized.parameters(*sweeps.DTYPES)
  @sweeps.SWEEP
  @given(lengths=_LENGTHS, seed=sweeps.seeds)
  def test_any_lengths_on_the_latent_cache(self, dtype, lengths, seed):
    """The plain form; `test_pallas_latent_attention.py` has the kernel's."""
    rng = np.random.default_rng(seed)
    q_latent, q_rope = (normal(rng, dtype, 3, 5, width) for width in (7, 4))
    latent, k_rope = (normal(rng, dtype, 3, 40, width) for width in (7, 4))
    expected = []
    for b, n in enumerate(lengths):
      q = np.concatenate(float64(q_latent[b], q_rope[b]), axis=-1)
      k = np.concatenate(float64(latent[b, :n], k_rope[b, :n]), axis=-1)
      v = np.float64(latent[b, :n])
      expected.append(oracle.attend_last(q, k[:, None], v[:, None], _SCALE))
      # Latents are values too, which are multiplied by 0.
      latent[b, n:], k_rope[b, n:] = 1e9, np.nan
    lengths = np.array(lengths, np.int32)
    out = _latent(q_latent, q_rope, latent, k_rope, lengths, _SCALE)
    self.assertEqual(out.dtype, sweeps.DTYPES[dtype])
    self.assertLess(cases.difference(out, expected), _FORWARD[dtype])

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
