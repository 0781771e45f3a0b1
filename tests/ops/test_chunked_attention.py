"""Attention by chunks gives what attention gives, in less memory."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases
from seekax.ops import attention
from seekax.ops.chunked_attention import chunked_attention, Chunking

_SCALE = 0.37


def _inputs(length, heads=4, kv_heads=2, batch=2, dtype=np.float32):
  rng = np.random.default_rng(length)
  return [
    jnp.asarray(rng.standard_normal((batch, length, count, width)), dtype)
    for count, width in ((heads, 6), (kv_heads, 6), (kv_heads, 5))
  ]


def _segments(length, batch=2):
  rng = np.random.default_rng(7)
  return 1 + np.cumsum(rng.random((batch, length)) < 0.1, axis=1)


def _whole(q, k, v, segments):
  """All logits at once."""
  length = q.shape[1]
  visible = jnp.tril(jnp.ones((length, length), bool))
  if segments is not None:
    visible = visible & (segments[:, :, None] == segments[:, None, :])
  return attention._attend(q, k, v, visible, _SCALE)


def _chunked(q, k, v, segments, block, stripes, keep=False):
  batch, length, heads, width = q.shape
  kv_heads = k.shape[2]
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  q = q.reshape(batch, kv_heads, heads // kv_heads, length, width)
  chunking = Chunking(block, stripes, keep)
  both = None if segments is None else (segments, segments)
  out = chunked_attention(q, k, v, both, None, _SCALE, chunking)
  return jnp.swapaxes(out.reshape(batch, heads, length, -1), 1, 2)


def _with_gradients(function, q, k, v):
  rng = np.random.default_rng(1)
  shape = jax.eval_shape(function, q, k, v).shape
  dout = jnp.asarray(rng.standard_normal(shape), q.dtype)

  def both(*inputs):
    out, pullback = jax.vjp(function, *inputs)
    return out, *pullback(dout)

  return cases.jit(both)(q, k, v)


class ChunkedAttentionTest(parameterized.TestCase):
  @parameterized.product(
    cut=((24, 8, 1), (24, 8, 2), (40, 8, 3), (64, 8, 8), (8, 8, 4)),
    isolate=(False, True),
    kv_heads=(1, 4),
  )
  def test_outputs_and_gradients_match_all_logits_at_once(
    self, cut, isolate, kv_heads
  ):
    length, block, stripes = cut
    inputs = _inputs(length, kv_heads=kv_heads)
    segments = _segments(length) if isolate else None
    expected = _with_gradients(lambda *x: _whole(*x, segments), *inputs)
    actual = _with_gradients(
      lambda *x: _chunked(*x, segments, block, stripes), *inputs
    )
    for ours, theirs in zip(actual, expected, strict=True):
      self.assertLess(cases.difference(ours, theirs), 5e-6)

  def test_results_do_not_depend_on_the_cut(self):
    inputs, segments = _inputs(48), _segments(48)
    results = [
      _with_gradients(lambda *x, cut=cut: _chunked(*x, segments, *cut), *inputs)
      for cut in ((48, 1), (8, 1, True), (12, 4), (16, 2, True))
    ]
    for other in results[1:]:
      for a, b in zip(other, results[0], strict=True):
        self.assertLess(cases.difference(a, b), 2e-6)

  def test_long_sequences_take_this_path_at_any_length(self):
    length = 4 * attention.QUERY_BLOCK + 37
    inputs = _inputs(length, batch=1)
    segments = _segments(length, batch=1)

    def ours(q, k, v):
      return attention.causal_attention(q, k, v, _SCALE, segments)

    def whole(q, k, v):
      return _whole(q, k, v, segments)

    actual = _with_gradients(ours, *inputs)
    expected = _with_gradients(whole, *inputs)
    for one, other in zip(actual, expected, strict=True):
      self.assertLess(cases.difference(one, other), 5e-6)

  @parameterized.product(
    # Both ways, and with keys that fill no whole blocks.
    cut=((96, 32), (2 * attention.QUERY_BLOCK + 37, attention.QUERY_BLOCK + 6)),
    isolate=(False, True),
  )
  def test_parts_of_a_sequence_are_those_of_the_whole(self, cut, isolate):
    length, each = cut
    q, k, v = _inputs(length, batch=1)
    segments = _segments(length, batch=1) if isolate else None

    def by_parts(q, k, v):
      outputs = []
      for first in range(0, length, each):
        own = slice(first, first + each)
        outputs.append(
          attention.causal_attention(
            q[:, own],
            k,
            v,
            _SCALE,
            None if segments is None else segments[:, own],
            part=attention.Part(jnp.int32(first), segments),
          )
        )
      return jnp.concatenate(outputs, axis=1)

    actual = _with_gradients(by_parts, q, k, v)
    expected = _with_gradients(lambda *x: _whole(*x, segments), q, k, v)
    for ours, theirs in zip(actual, expected, strict=True):
      self.assertLess(cases.difference(ours, theirs), 5e-6)

  def test_bfloat16_stays_near_float32(self):
    exact = _inputs(32)
    rounded = [x.astype(jnp.bfloat16) for x in exact]
    expected = _with_gradients(
      lambda *x: _whole(*x, None), *(x.astype(jnp.float32) for x in rounded)
    )
    actual = _with_gradients(lambda *x: _chunked(*x, None, 8, 2), *rounded)
    for ours, theirs in zip(actual, expected, strict=True):
      self.assertEqual(ours.dtype, jnp.bfloat16)
      self.assertLess(cases.difference(ours.astype(jnp.float32), theirs), 2e-2)

  def test_later_keys_and_values_change_nothing(self):
    q, k, v = _inputs(32)
    before = _chunked(q, k, v, None, 8, 2)
    k, v = k.at[:, 20:].set(1e9), v.at[:, 20:].set(1e9)
    after = _chunked(q, k, v, None, 8, 2)
    np.testing.assert_array_equal(before[:, :20], after[:, :20])

  def test_memory_grows_with_the_length_not_with_its_square(self):
    def temporaries(length, function):
      shapes = [
        jax.ShapeDtypeStruct((1, length, 2, width), jnp.float32)
        for width in (16, 16, 16)
      ]
      gradient = jax.jit(
        jax.grad(lambda *x: function(*x).sum(), argnums=(0, 1, 2))
      )
      return cases.temporaries(gradient.lower(*shapes).compile())

    def chunked(q, k, v):
      return attention.causal_attention(q, k, v, _SCALE)

    short, long = (temporaries(length, chunked) for length in (1024, 4096))
    whole = temporaries(4096, lambda *x: _whole(*x, None))
    self.assertLess(long, 5 * short)
    self.assertLess(long, whole / 5)


if __name__ == '__main__':
  absltest.main()
