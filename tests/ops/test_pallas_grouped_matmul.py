"""Laws of the grouped kernels, run step by step on the CPU."""

import functools

from absl.testing import absltest, parameterized
from hypothesis import given, settings, strategies
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases, cuda
from reference import experts as oracle
from reference.sweeps import (
  bounds,
  DTYPES,
  float64,
  group_sizes,
  normal,
  seeds,
  SWEEP,
)
from seekax.ops import pallas_grouped_matmul as kernels
from seekax.ops.pallas_tiles import Tiling

# The result is rounded; with SwiGLU so are the two products, the hidden rows,
# their gradients and those of both branches.
_PRODUCT = bounds(1)
_SWIGLU = bounds(5)

_SIZES = {
  'balanced': (8, 8, 8, 8, 8, 8),
  'random': (3, 17, 1, 12, 5, 10),
  'one_takes_all': (0, 0, 48, 0, 0, 0),
  'first_takes_all': (48, 0, 0, 0, 0, 0),
  'last_takes_all': (0, 0, 0, 0, 0, 48),
  'empty_start': (0, 0, 9, 20, 10, 9),
  'empty_middle': (20, 10, 0, 0, 9, 9),
  'whole_tiles': (16, 0, 32, 0, 0, 0),
  'one_each': (1, 1, 1, 1, 1, 1),
  'below_s': (5, 0, 18, 1, 7, 2),
  'nothing': (0, 0, 0, 0, 0, 0),
}
_SMALL = Tiling(rows=16, columns=16, depth=16, warps=4, stages=2)


@functools.partial(cases.jit, static_argnums=0)
def _matmul(tiling, rows, weights, sizes, cotangent):
  def run(rows, weights):
    return kernels.grouped_matmul(
      rows, weights, sizes, interpret=True, tiling=tiling
    )

  out, pullback = jax.vjp(run, rows, weights)
  return out, *pullback(cotangent)


@functools.partial(cases.jit, static_argnums=0)
def _hidden(tiling, rows, gate, up, scale, sizes, cotangent):
  def run(rows, gate, up, scale):
    return kernels.grouped_swiglu_hidden(
      rows, gate, up, scale, sizes, interpret=True, tiling=tiling
    )

  out, pullback = jax.vjp(run, rows, gate, up, scale)
  return out, *pullback(cotangent)


@cases.jit
def _swiglu(rows, gate, up, down, scale, sizes, cotangent):
  def run(*args):
    return kernels.grouped_swiglu(*args, sizes, interpret=True)

  out, pullback = jax.vjp(run, rows, gate, up, down, scale)
  return out, *pullback(cotangent)


def _poison(sizes, *arrays):
  """Rows past the groups become NaN: nobody may read them."""
  for x in arrays:
    x[sum(sizes) :] = np.nan


def _experts_of(sizes):
  return np.repeat(np.arange(len(sizes)), sizes)[:, None]


class Sweep(parameterized.TestCase):
  def check(self, expected, actual, bound):
    for name, e in expected.items():
      found = np.asarray(actual[name], np.float64)
      self.assertLess(cases.difference(found, e), bound, name)


class GroupedMatmulTest(Sweep):
  def _check(self, sizes, rows, width, columns, dtype, tiling=None, seed=0):
    rng = np.random.default_rng(seed)
    x = normal(rng, dtype, rows, width)
    w = normal(rng, dtype, len(sizes), width, columns)
    dy = normal(rng, dtype, rows, columns)
    clean = [a.copy() for a in (x, w, dy)]
    _poison(sizes, x, dy)
    sizes = np.array(sizes, np.int32)
    out, dx, dw = _matmul(tiling, x, w, sizes, dy)
    self.assertEqual({a.dtype for a in (out, dx, dw)}, {DTYPES[dtype]})
    x, w, dy = float64(*clean)
    expected_dx, expected_dw = oracle.grouped_matmul_gradients(x, w, sizes, dy)
    self.check(
      {
        'out': oracle.grouped_matmul(x, w, sizes),
        'dx': expected_dx,
        'dw': expected_dw,
      },
      {'out': out, 'dx': dx, 'dw': dw},
      _PRODUCT[dtype],
    )
    for name, a in (('out', out), ('dx', dx)):
      self.assertFalse(np.any(np.asarray(a[sizes.sum() :], np.float32)), name)
    empty = np.asarray(dw, np.float32)[sizes == 0]
    self.assertFalse(np.any(empty))

  @parameterized.product(dtype=tuple(DTYPES), pattern=tuple(_SIZES))
  def test_products_and_gradients_match_oracle(self, dtype, pattern):
    self._check(_SIZES[pattern], 48, 20, 36, dtype, _SMALL)

  @parameterized.parameters('float32', 'bfloat16')
  @SWEEP
  @given(sizes=group_sizes(4, 48), seed=seeds)
  def test_any_sizes(self, dtype, sizes, seed):
    self._check(sizes, 48, 20, 36, dtype, _SMALL, seed)

  @settings(SWEEP, max_examples=6)
  @given(
    sizes=strategies.lists(strategies.integers(0, 40), min_size=1, max_size=5),
    beyond=strategies.integers(0, 20),
    width=strategies.integers(1, 70),
    columns=strategies.integers(1, 70),
    dtype=strategies.sampled_from(tuple(DTYPES)),
  )
  def test_any_shapes(self, sizes, beyond, width, columns, dtype):
    rows = sum(sizes) + beyond
    if rows:
      self._check(sizes, rows, width, columns, dtype)

  def test_no_rows(self):
    out, dx, dw = _matmul(
      None,
      np.zeros((0, 4), np.float32),
      np.ones((3, 4, 5), np.float32),
      np.zeros(3, np.int32),
      np.zeros((0, 5), np.float32),
    )
    self.assertEqual((out.shape, dx.shape), ((0, 5), (0, 4)))
    np.testing.assert_array_equal(dw, np.zeros((3, 4, 5)))

  def test_results_do_not_depend_on_the_tiles(self):
    rng = np.random.default_rng(3)
    sizes = np.array((40, 0, 17, 90, 3), np.int32)
    x = normal(rng, 'float32', 150, 70)
    w, dy = (
      normal(rng, 'float32', 5, 70, 50),
      normal(rng, 'float32', 150, 50),
    )
    first = _matmul(_SMALL, x, w, sizes, dy)
    for edges in ((32, 16, 64), (128, 64, 32)):
      other = _matmul(Tiling(*edges, warps=4, stages=2), x, w, sizes, dy)
      for a, b in zip(first, other, strict=True):
        self.assertLess(cases.difference(a, b), 1e-6)

  @parameterized.parameters(
    ('float16', 'float16', (3, 4, 5)),
    ('float32', 'bfloat16', (3, 4, 5)),
    ('float32', 'float32', (2, 4, 5)),
    ('float32', 'float32', (3, 5, 4)),
  )
  def test_what_does_not_fit_is_refused(self, rows, weights, shape):
    with self.assertRaises(ValueError):
      kernels.grouped_matmul(
        jnp.ones((6, 4), rows),
        jnp.ones(shape, weights),
        jnp.array((1, 2, 3)),
        interpret=True,
      )


class SwigluTest(Sweep):
  """Against the mixture of tokens that choose one expert each."""

  def _inputs(self, sizes, rows, width, hidden, dtype, seed):
    rng = np.random.default_rng(seed)
    experts = len(sizes)
    return {
      'rows': normal(rng, dtype, rows, width),
      'gate': normal(rng, dtype, experts, width, hidden),
      'up': normal(rng, dtype, experts, width, hidden),
      'down': normal(rng, dtype, experts, hidden, width),
      'scale': rng.uniform(0.05, 1, rows).astype(np.float32),
      'dout': normal(rng, dtype, rows, width),
    }

  def _check(self, sizes, dtype, rows=48, width=20, hidden=12, seed=1):
    inputs = self._inputs(sizes, rows, width, hidden, dtype, seed)
    inside = sum(sizes)
    exact = {k: np.float64(v) for k, v in inputs.items()}
    token = [exact[k][:inside] for k in ('rows', 'scale', 'dout')]
    weights = [exact[k] for k in ('gate', 'up', 'down')]
    of = token[0], token[1][:, None], _experts_of(sizes), *weights
    found = oracle.grouped_swiglu_gradients(*of, token[2])
    expected = dict(
      zip(('rows', 'scale', 'gate', 'up', 'down'), found, strict=True)
    )
    expected['out'] = oracle.grouped_swiglu(*of)
    expected['scale'] = expected['scale'][:, 0]
    _poison(sizes, inputs['rows'], inputs['scale'], inputs['dout'])
    names = ('rows', 'gate', 'up', 'down', 'scale')
    actual = _swiglu(
      *(inputs[k] for k in names), np.array(sizes, np.int32), inputs['dout']
    )
    actual = dict(zip(('out', *names), actual, strict=True))
    for name in ('out', 'rows', 'scale'):
      beyond = np.asarray(actual[name][inside:], np.float32)
      self.assertFalse(np.any(beyond), name)
      actual[name] = actual[name][:inside]
    self.check(expected, actual, _SWIGLU[dtype])

  @parameterized.product(
    dtype=tuple(DTYPES),
    pattern=('random', 'one_takes_all', 'empty_start', 'below_s', 'nothing'),
  )
  def test_swiglu_and_all_gradients_match_oracle(self, dtype, pattern):
    self._check(_SIZES[pattern], dtype)

  @parameterized.parameters('float32', 'bfloat16')
  @settings(SWEEP, max_examples=8)
  @given(sizes=group_sizes(6, 48), seed=seeds)
  def test_any_sizes(self, dtype, sizes, seed):
    self._check(sizes, dtype, seed=seed)

  def test_hidden_and_a_product_are_the_whole(self):
    inputs = self._inputs(_SIZES['below_s'], 48, 20, 12, 'float32', 5)
    sizes = np.array(_SIZES['below_s'], np.int32)

    def both(rows, gate, up, down, scale):
      hidden = kernels.grouped_swiglu_hidden(
        rows, gate, up, scale, sizes, interpret=True
      )
      return kernels.grouped_matmul(hidden, down, sizes, interpret=True)

    names = ('rows', 'gate', 'up', 'down', 'scale')
    args = [inputs[k] for k in names]

    @cases.jit
    def with_gradients(cotangent, *args):
      out, pullback = jax.vjp(both, *args)
      return out, *pullback(cotangent)

    in_two = with_gradients(inputs['dout'], *args)
    in_one = _swiglu(*args, sizes, inputs['dout'])
    for name, a, b in zip(('out', *names), in_two, in_one, strict=True):
      self.assertLess(cases.difference(a, b), 1e-6, name)

  def test_hidden_does_not_depend_on_the_tiles(self):
    inputs = self._inputs(_SIZES['random'], 48, 20, 36, 'float32', 6)
    sizes = np.array(_SIZES['random'], np.int32)
    args = [inputs[k] for k in ('rows', 'gate', 'up', 'scale')]
    cotangent = normal(np.random.default_rng(7), 'float32', 48, 36)
    results = [
      _hidden(tiling, *args, sizes, cotangent)
      for tiling in (_SMALL, Tiling(32, 64, 32, warps=4, stages=2))
    ]
    for a, b in zip(*results, strict=True):
      self.assertLess(cases.difference(a, b), 1e-6)


class ProgramTest(parameterized.TestCase):
  def test_nothing_has_the_size_of_tokens_times_experts(self):
    rows, experts, width = 4096, 64, 8

    def step(x, w, d, scale, sizes, dy):
      def run(*args):
        return kernels.grouped_swiglu(*args, sizes)

      return jax.vjp(run, x, w, w, d, scale)[1](dy)

    shape = jax.ShapeDtypeStruct
    x = shape((rows, width), jnp.bfloat16)
    w = shape((experts, width, width), jnp.bfloat16)
    jaxpr = jax.make_jaxpr(step)(
      x,
      w,
      w,
      shape((rows,), jnp.float32),
      shape((experts,), jnp.int32),
      x,
    )
    largest = max(v.aval.size for eqn in jaxpr.jaxpr.eqns for v in eqn.outvars)
    self.assertLessEqual(largest, rows * width)

  @parameterized.parameters('float32', 'bfloat16')
  def test_kernels_lower_for_cuda_at_the_size_of_v3(self, dtype):
    rows, experts, width, hidden = 32768, 256, 7168, 2048

    def step(x, gate, up, down, scale, sizes, dy):
      def run(*args):
        return kernels.grouped_swiglu(*args, sizes)

      out, pullback = jax.vjp(run, x, gate, up, down, scale)
      return out, *pullback(dy)

    def shape(*sizes, dtype=dtype):
      return jax.ShapeDtypeStruct(sizes, dtype)

    into = shape(experts, width, hidden)
    found = cuda.kernels(
      step,
      shape(rows, width),
      into,
      into,
      shape(experts, hidden, width),
      shape(rows, dtype='float32'),
      shape(experts, dtype='int32'),
      shape(rows, width),
    )
    # Hidden, output, its gradient, the rows' gradient, three weights'.
    self.assertLen(found, 7)
    for text in found:
      self.assertIn('scf.for', text)
      self.assertNotIn('inputPrecision = tf32', text)
    # Their weights have more than 2**31 entries.
    self.assertTrue(all('i64' in text for text in found))


if __name__ == '__main__':
  absltest.main()
