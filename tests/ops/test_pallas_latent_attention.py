"""Laws of the decoding kernel, run step by step on the CPU."""

import functools

from absl.testing import absltest, parameterized
from hypothesis import given, settings, strategies
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from reference import attention as oracle
from reference import cases, cuda
from reference.sweeps import bounds, DTYPES, SWEEP
from seekax.ops import attention
from seekax.ops import pallas_latent_attention as kernels
from seekax.ops.pallas_latent_attention import Tiling

_SCALE = 0.31
# The softmax's weights are rounded, and the result.
_BOUND = bounds(2)
_SMALL = Tiling(heads=16, positions=16, parts=1, warps=4, stages=2)
_SPLIT = Tiling(heads=16, positions=16, parts=3, warps=4, stages=2)


@functools.partial(cases.jit, static_argnums=0)
def _decode(tiling, *args):
  return kernels.latent_attention(*args, _SCALE, interpret=True, tiling=tiling)


def _inputs(rng, dtype, batch, heads, room, latent, rope):
  shapes = (
    (batch, heads, latent),
    (batch, heads, rope),
    (batch, room, latent),
    (batch, room, rope),
  )
  return [rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes]


def _expected(q_latent, q_rope, latent, k_rope, lengths):
  """Each request's last query over its own positions, in float64."""
  out = np.zeros(q_latent.shape)
  for b, length in enumerate(lengths):
    k = np.concatenate([latent[b], k_rope[b]], axis=1)[:length]
    for h in range(q_latent.shape[1]) if length else ():
      q = np.concatenate([q_latent[b, h], q_rope[b, h]])
      every = np.tile(q, (length, 1))
      out[b, h] = oracle.attend_head(every, k, latent[b, :length], _SCALE)[-1]
  return out


class LatentAttentionTest(parameterized.TestCase):
  def _check(self, dtype, lengths, shape, tiling, seed=0):
    rng = np.random.default_rng(seed)
    inputs = _inputs(rng, dtype, len(lengths), *shape)
    expected = _expected(*(np.float64(x) for x in inputs), lengths)
    for b, length in enumerate(lengths):  # Nobody may read past the length.
      inputs[2][b, length:], inputs[3][b, length:] = np.nan, np.nan
    out = _decode(tiling, *inputs, np.array(lengths, np.int32))
    self.assertEqual(out.dtype, DTYPES[dtype])
    out = np.asarray(out, np.float64)
    self.assertLess(cases.difference(out, expected), _BOUND[dtype])

  @parameterized.product(
    dtype=tuple(DTYPES),
    lengths=((1, 50, 16), (0, 17, 33), (50, 50, 50), (0, 0, 0)),
    tiling=(_SMALL, _SPLIT),
  )
  def test_matches_oracle(self, dtype, lengths, tiling):
    # Heads and widths that fill no block.
    self._check(dtype, lengths, (20, 50, 24, 6), tiling)

  @parameterized.product(dtype=tuple(DTYPES), tiling=(_SMALL, _SPLIT))
  @SWEEP
  @given(
    lengths=strategies.lists(strategies.integers(0, 50), min_size=3, max_size=3)
  )
  def test_any_lengths(self, dtype, tiling, lengths):
    self._check(dtype, lengths, (20, 50, 24, 6), tiling)

  @settings(SWEEP, max_examples=6)
  @given(
    heads=strategies.integers(1, 40),
    room=strategies.integers(1, 70),
    latent=strategies.integers(1, 40),
    rope=strategies.integers(1, 20),
    parts=strategies.integers(1, 4),
  )
  def test_any_shapes(self, heads, room, latent, rope, parts):
    tiling = Tiling(16, 16, parts, warps=4, stages=2)
    lengths = (room, room // 2)
    self._check('float32', lengths, (heads, room, latent, rope), tiling)

  def test_chosen_tiles_give_what_the_plain_form_gives(self):
    rng = np.random.default_rng(2)
    inputs = _inputs(rng, 'float32', 2, 5, 600, 32, 8)
    lengths = np.array((600, 411), np.int32)
    chosen = kernels.choose_tiling(2, 5, 600, 'float32')
    self.assertEqual(chosen.parts, 2)
    plain = attention.latent_attention(*inputs, lengths, _SCALE)
    out = _decode(None, *inputs, lengths)
    self.assertLess(cases.difference(out, plain), 5e-6)

  def test_results_do_not_depend_on_the_tiles(self):
    rng = np.random.default_rng(3)
    inputs = _inputs(rng, 'float32', 2, 40, 90, 24, 8)
    lengths = np.array((90, 61), np.int32)
    first = _decode(_SMALL, *inputs, lengths)
    for tiling in (_SPLIT, Tiling(32, 64, 2, warps=4, stages=2)):
      other = _decode(tiling, *inputs, lengths)
      self.assertLess(cases.difference(other, first), 2e-6)

  def test_float32_queries_meet_a_bfloat16_cache_in_float32(self):
    rng = np.random.default_rng(4)
    inputs = _inputs(rng, 'float32', 2, 16, 40, 16, 16)
    inputs[2:] = [x.astype(ml_dtypes.bfloat16) for x in inputs[2:]]
    lengths = (40, 9)
    out = _decode(_SMALL, *inputs, np.array(lengths, np.int32))
    self.assertEqual(out.dtype, DTYPES['bfloat16'])
    expected = _expected(*(np.float64(x) for x in inputs), lengths)
    # One rounding.
    out = np.asarray(out, np.float64)
    self.assertLess(cases.difference(out, expected), 4e-3)

  @parameterized.parameters(
    (1, 131072, 'bfloat16'),
    (8, 4096, 'bfloat16'),
    (256, 4096, 'bfloat16'),
    (8, 4096, 'float32'),
  )
  def test_lowers_for_cuda_at_the_size_of_v3(self, batch, room, dtype):
    def shape(*sizes):
      return jax.ShapeDtypeStruct(sizes, dtype)

    def run(*args):
      return kernels.latent_attention(*args, 0.135)

    (text,) = cuda.kernels(
      run,
      shape(batch, 128, 512),
      shape(batch, 128, 64),
      shape(batch, room, 512),
      shape(batch, room, 64),
      jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    self.assertNotIn('inputPrecision = tf32', text)
    # Keys in two parts, and values: three products a block.
    self.assertEqual(text.count('tt.dot'), 3)


if __name__ == '__main__':
  absltest.main()
