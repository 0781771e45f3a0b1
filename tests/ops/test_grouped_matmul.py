"""Laws of the grouped products: every backend, every pattern of loads."""

import functools
import inspect
from unittest import mock

from absl.testing import absltest, parameterized
from hypothesis import given, strategies
import jax
import numpy as np

from reference import cases, sweeps
from reference import experts as oracle
from reference.sweeps import float64, normal
from seekax.ops import blocks
from seekax.ops import grouped_matmul as ops

_TOLERANCE = 1e-5

# One rounding of the result; with SwiGLU also of the products, the hidden rows,
# their gradients and both branches'.
_PRODUCT = sweeps.bounds(1)
_SWIGLU = sweeps.bounds(5)

# Those that run on a CPU, the Pallas kernels step by step.
_BACKENDS = ('blocked', 'pallas', 'ragged', 'dense')

# 6 experts: not divisible by 4, the number of leftover groups.
_SIZES = {
  'balanced': (8, 8, 8, 8, 8, 8),
  'random': (3, 17, 1, 12, 5, 10),
  'one_takes_all': (0, 0, 48, 0, 0, 0),
  'first_takes_all': (48, 0, 0, 0, 0, 0),
  'last_takes_all': (0, 0, 0, 0, 0, 48),
  'empty_start': (0, 0, 9, 20, 10, 9),
  'empty_middle': (20, 10, 0, 0, 9, 9),
  'empty_end': (9, 20, 10, 9, 0, 0),
  'below_s': (5, 0, 18, 1, 7, 2),
  'nothing': (0, 0, 0, 0, 0, 0),
}


@functools.partial(cases.jit, static_argnums=0)
def _matmul(backend, rows, weights, sizes, cotangent):
  out, pullback = jax.vjp(
    lambda r, w: ops.grouped_matmul(
      r, w, sizes, backend, interpret=backend == 'pallas'
    ),
    rows,
    weights,
  )
  return out, *pullback(cotangent)


@functools.partial(cases.jit, static_argnums=0)
def _swiglu(backend, x, gates, experts, gate, up, down, cotangent):
  def run(x, gates, gate, up, down):
    return ops.grouped_swiglu(
      x, gates, experts, gate, up, down, backend, interpret=backend == 'pallas'
    )

  out, pullback = jax.vjp(run, x, gates, gate, up, down)
  return out, *pullback(cotangent)


class GroupedMatmulTest(parameterized.TestCase):
  def _check(self, backend, sizes, rows):
    rng = np.random.default_rng(0)
    sizes = np.array(sizes, np.int32)
    rows, weights = (
      normal(rng, 'float32', rows, 5),
      normal(rng, 'float32', len(sizes), 5, 7),
    )
    cotangent = normal(rng, 'float32', len(rows), 7)
    actual = _matmul(backend, rows, weights, sizes, cotangent)
    rows, weights, cotangent = float64(rows, weights, cotangent)
    expected = (
      oracle.grouped_matmul(rows, weights, sizes),
      *oracle.grouped_matmul_gradients(rows, weights, sizes, cotangent),
    )
    names = ('output', 'rows', 'weights')
    for name, a, e in zip(names, actual, expected, strict=True):
      self.assertLess(cases.difference(a, e), _TOLERANCE, name)

  @parameterized.product(backend=_BACKENDS, pattern=tuple(_SIZES))
  def test_products_and_gradients_match_oracle(self, backend, pattern):
    self._check(backend, _SIZES[pattern], 48)

  @parameterized.product(backend=_BACKENDS, dtype=tuple(sweeps.DTYPES))
  @sweeps.SWEEP
  @given(sizes=sweeps.group_sizes(6, 48), seed=sweeps.seeds)
  def test_any_sizes(self, backend, dtype, sizes, seed):
    rng = np.random.default_rng(seed)
    sizes = np.array(sizes, np.int32)
    x, dy = normal(rng, dtype, 48, 5), normal(rng, dtype, 48, 7)
    weights = normal(rng, dtype, 6, 5, 7)
    actual = _matmul(backend, x, weights, sizes, dy)
    x, weights, dy = float64(x, weights, dy)
    expected = (
      oracle.grouped_matmul(x, weights, sizes),
      *oracle.grouped_matmul_gradients(x, weights, sizes, dy),
    )
    names = ('output', 'rows', 'weights')
    for name, a, e in zip(names, actual, expected, strict=True):
      self.assertEqual(a.dtype, sweeps.DTYPES[dtype])
      self.assertLess(cases.difference(a, e), _PRODUCT[dtype], name)
    for name, a in zip(names[:2], actual[:2], strict=True):
      beyond = np.asarray(a, np.float32)[sizes.sum() :]
      self.assertFalse(np.any(beyond), name)

  @parameterized.parameters(('pallas', np.nan), ('blocked', 1e6))
  def test_rows_past_the_groups_are_not_read(self, backend, poison):
    """By the kernels. The blocks multiply one of them by 0: not by NaN."""
    rng = np.random.default_rng(2)
    sizes = np.array((5, 0, 18, 1, 7, 2), np.int32)
    x, dy = normal(rng, 'float32', 48, 5), normal(rng, 'float32', 48, 7)
    weights = normal(rng, 'float32', 6, 5, 7)
    clean = _matmul(backend, x, weights, sizes, dy)
    x[sizes.sum() :], dy[sizes.sum() :] = poison, poison
    poisoned = _matmul(backend, x, weights, sizes, dy)
    for a, b in zip(poisoned, clean, strict=True):
      np.testing.assert_array_equal(a, b)

  @parameterized.product(
    backend=_BACKENDS, sizes=((0, 1, 0, 0, 0), (0, 0, 0, 0, 0))
  )
  def test_single_row(self, backend, sizes):
    self._check(backend, sizes, 1)

  @parameterized.product(backend=_BACKENDS)
  def test_single_expert(self, backend):
    self._check(backend, (9,), 9)


def _choices(pattern, rng, tokens, count, per_token):
  """Chosen experts of every token: distinct within a token."""
  everyone = np.arange(count)
  match pattern:
    case 'balanced':
      first = np.arange(tokens)[:, None] * per_token
      return (first + np.arange(per_token)) % count
    case 'random':
      rows = [
        rng.choice(count, per_token, replace=False) for _ in range(tokens)
      ]
    case 'imbalanced':  # all tokens to the same experts, the others get none
      rows = [rng.permutation(everyone[-per_token:]) for _ in range(tokens)]
    case 'empty_start':
      rows = [rng.permutation(everyone[2:])[:per_token] for _ in range(tokens)]
    case 'empty_end':
      rows = [rng.permutation(everyone[:-2])[:per_token] for _ in range(tokens)]
    case 'empty_middle':
      some = np.delete(everyone, [2, 3])
      rows = [rng.permutation(some)[:per_token] for _ in range(tokens)]
    case _:
      raise ValueError(pattern)
  return np.stack(rows)


_PATTERNS = (
  'balanced',
  'random',
  'imbalanced',
  'empty_start',
  'empty_middle',
  'empty_end',
)


class GroupedSwigluTest(parameterized.TestCase):
  def _check(self, backend, experts, count):
    rng = np.random.default_rng(1)
    experts = experts.astype(np.int32)
    tokens, per_token = experts.shape
    inputs = [
      normal(rng, 'float32', tokens, 5),
      rng.uniform(0.05, 1, (tokens, per_token)).astype(np.float32),
      experts,
      normal(rng, 'float32', count, 5, 7),
      normal(rng, 'float32', count, 5, 7),
      normal(rng, 'float32', count, 7, 5),
    ]
    cotangent = normal(rng, 'float32', tokens, 5)
    actual = _swiglu(backend, *inputs, cotangent)
    inputs = float64(*inputs[:2]) + [experts] + float64(*inputs[3:])
    expected = (
      oracle.grouped_swiglu(*inputs),
      *oracle.grouped_swiglu_gradients(*inputs, np.float64(cotangent)),
    )
    names = ('output', 'x', 'gates', 'gate', 'up', 'down')
    for name, a, e in zip(names, actual, expected, strict=True):
      self.assertLess(cases.difference(a, e), _TOLERANCE, name)

  def _sweep(self, backend, dtype, experts, seed, count=6, sums=0):
    rng = np.random.default_rng(seed)
    tokens, per_token = experts.shape
    gates = rng.uniform(0.05, 1, (tokens, per_token)).astype(np.float32)
    x, dy = (normal(rng, dtype, tokens, 5) for _ in range(2))
    gate, up = (normal(rng, dtype, count, 5, 7) for _ in range(2))
    down = normal(rng, dtype, count, 7, 5)
    # The sum is float32, and so is its gradient.
    dy = dy.astype(np.float32)
    actual = _swiglu(backend, x, gates, experts, gate, up, down, dy)
    x, gates, dy, *weights = float64(x, gates, dy, gate, up, down)
    # Nobody is one more expert, whose weights are 0.
    weights = [np.concatenate([w, np.zeros_like(w[:1])]) for w in weights]
    inputs = x, gates, experts, *weights
    dx, dgates, *dweights = oracle.grouped_swiglu_gradients(*inputs, dy)
    expected = oracle.grouped_swiglu(*inputs), dx, dgates
    expected += tuple(dw[:count] for dw in dweights)
    names = ('output', 'x', 'gates', 'gate', 'up', 'down')
    of_weights = sweeps.bounds(5 + sums)
    for name, a, e in zip(names, actual, expected, strict=True):
      bound = of_weights if name in names[3:] else _SWIGLU
      self.assertLess(cases.difference(a, e), bound[dtype], name)
    self.assertFalse(np.any(np.asarray(actual[2])[experts == count]))

  @parameterized.product(backend=_BACKENDS, dtype=tuple(sweeps.DTYPES))
  @sweeps.SWEEP
  @given(experts=sweeps.choices(30, 3, 6), seed=sweeps.seeds)
  def test_any_choices(self, backend, dtype, experts, seed):
    self._sweep(backend, dtype, experts, seed)

  @parameterized.product(
    dtype=tuple(sweeps.DTYPES), shape=((1, 3, 6), (12, 3, 72))
  )
  @sweeps.SWEEP
  @given(data=strategies.data(), seed=sweeps.seeds)
  def test_any_choices_in_decoding(self, dtype, shape, data, seed):
    """Few beside the experts: only the chosen experts' weights are read."""
    experts = data.draw(sweeps.choices(*shape))
    # Nobody needs these gradients: those of an expert's weights are added up in
    # their own dtype, rounded after every choice.
    self._sweep('blocked', dtype, experts, seed, shape[-1], experts.size)

  def test_results_do_not_depend_on_the_sizes_of_blocks(self):
    rng = np.random.default_rng(7)
    experts = rng.integers(0, 7, (30, 3)).astype(np.int32)
    experts[:, 0] = 4  # Many leftover blocks.
    inputs = [
      normal(rng, 'float32', 30, 5),
      rng.uniform(0.05, 1, (30, 3)).astype(np.float32),
      experts,
      *(normal(rng, 'float32', 6, 5, 7) for _ in range(2)),
      normal(rng, 'float32', 6, 7, 5),
      normal(rng, 'float32', 30, 5),
    ]
    whole = _swiglu('blocked', *inputs)
    for slack, rows_share, group_share in (
      (0.1, 1, 6),
      (0.6, 64, 1),
      (9, 8, 2),
    ):
      with mock.patch.multiple(
        blocks,
        BLOCK_SLACK=slack,
        LEFTOVER_ROWS_SHARE=rows_share,
        LEFTOVER_GROUP_SHARE=group_share,
      ):
        # A function of its own: _swiglu remembers what it compiled.
        one = cases.jit(lambda *x: inspect.unwrap(_swiglu)('blocked', *x))(
          *inputs
        )
      for a, b in zip(one, whole, strict=True):
        self.assertLess(cases.difference(a, b), 2e-6)

  @parameterized.parameters(('pallas', np.nan), ('blocked', 1e6))
  def test_tokens_of_nobody_are_not_read(self, backend, poison):
    """By the kernels. The blocks multiply one of them by 0: not by NaN."""
    rng = np.random.default_rng(8)
    experts = rng.integers(0, 6, (30, 3)).astype(np.int32)
    experts[::4] = experts[-1] = 6
    inputs = [
      normal(rng, 'float32', 30, 5),
      rng.uniform(0.05, 1, (30, 3)).astype(np.float32),
      experts,
      *(normal(rng, 'float32', 6, 5, 7) for _ in range(2)),
      normal(rng, 'float32', 6, 7, 5),
      normal(rng, 'float32', 30, 5),
    ]
    clean = _swiglu(backend, *inputs)
    for x in (inputs[0], inputs[1], inputs[-1]):
      x[experts[:, 0] == 6] = poison
    poisoned = _swiglu(backend, *inputs)
    for a, b in zip(poisoned, clean, strict=True):
      np.testing.assert_array_equal(a, b)

  @parameterized.product(backend=_BACKENDS, pattern=_PATTERNS)
  def test_swiglu_and_all_gradients_match_oracle(self, backend, pattern):
    rng = np.random.default_rng(2)
    self._check(backend, _choices(pattern, rng, 30, 6, 3), 6)

  @parameterized.product(backend=_BACKENDS, pattern=('random', 'imbalanced'))
  def test_one_choice_of_nine_experts(self, backend, pattern):
    # 'imbalanced': one expert takes all, in many blocks.
    rng = np.random.default_rng(3)
    self._check(backend, _choices(pattern, rng, 40, 9, 1), 9)

  @parameterized.product(backend=_BACKENDS)
  def test_every_expert_chosen(self, backend):
    rng = np.random.default_rng(4)
    self._check(backend, _choices('random', rng, 7, 5, 5), 5)

  @parameterized.product(backend=_BACKENDS)
  def test_single_token(self, backend):
    self._check(backend, np.array([[3]]), 5)

  def test_total_imbalance_drops_no_token(self):
    """Every token comes out as if it were alone."""
    rng = np.random.default_rng(5)
    experts = np.full((40, 1), 4, np.int32)
    x, weights = (
      normal(rng, 'float32', 40, 5),
      [normal(rng, 'float32', 9, 5, 7) for _ in range(2)],
    )
    down = normal(rng, 'float32', 9, 7, 5)
    out = _swiglu(
      'blocked', x, np.ones((40, 1), np.float32), experts, *weights, down, x
    )[0]
    self.assertGreater(40, 2 * blocks.block_rows(40, 9))
    expected = oracle.swiglu(
      x.astype(np.float64), weights[0][4], weights[1][4], down[4]
    )
    self.assertLess(cases.difference(out, expected), _TOLERANCE)

  def test_order_of_choices_does_not_matter(self):
    rng = np.random.default_rng(6)
    experts = _choices('random', rng, 30, 6, 3).astype(np.int32)
    gates = rng.uniform(0.05, 1, (30, 3)).astype(np.float32)
    x = normal(rng, 'float32', 30, 5)
    weights = [normal(rng, 'float32', 6, 5, 7) for _ in range(2)] + [
      normal(rng, 'float32', 6, 7, 5)
    ]
    out = _swiglu('blocked', x, gates, experts, *weights, x)[0]
    turned = _swiglu(
      'blocked', x, gates[:, ::-1], experts[:, ::-1], *weights, x
    )[0]
    self.assertLess(cases.difference(turned, out), 1e-6)


class SlotsTest(absltest.TestCase):
  def test_every_slot_has_one_place_among_its_experts(self):
    rng = np.random.default_rng(7)
    experts = rng.integers(0, 7, (20, 3)).astype(np.int32)  # 6 is nobody
    slots = cases.jit(blocks.sort_slots, static_argnums=1)(experts, 6)
    order = np.asarray(slots.order_S)
    self.assertCountEqual(order.tolist(), range(60))
    sizes = [(experts == e).sum() for e in range(6)]
    np.testing.assert_array_equal(slots.sizes_E, sizes)
    for t in range(20):
      for a in range(3):
        e = experts[t, a]
        if e < 6:
          place = slots.starts_E[e] + slots.rank_TA[t, a]
          self.assertEqual(order[place], 3 * t + a)

  def test_nobody_adds_nothing(self):
    """A choice with id E gives nothing and gets no gradient."""
    rng = np.random.default_rng(8)
    experts = _choices('random', rng, 30, 6, 3).astype(np.int32)
    gates = rng.uniform(0.05, 1, (30, 3)).astype(np.float32)
    x, dy = normal(rng, 'float32', 30, 5), normal(rng, 'float32', 30, 5)
    weights = [normal(rng, 'float32', 6, 5, 7) for _ in range(2)] + [
      normal(rng, 'float32', 6, 7, 5)
    ]
    without = gates.copy()
    without[::2, 1] = 0
    expected = _swiglu('blocked', x, without, experts, *weights, dy)
    nobody = experts.copy()
    nobody[::2, 1] = 6
    actual = _swiglu('blocked', x, gates, nobody, *weights, dy)
    for name, index in (('output', 0), ('x', 1), ('gate', 3), ('down', 5)):
      difference = cases.difference(actual[index], expected[index])
      self.assertLess(difference, 1e-6, name)
    self.assertEqual(np.abs(actual[2][::2, 1]).max(), 0)


class OracleTest(absltest.TestCase):
  def test_gradients_by_hand_are_slopes(self):
    rng = np.random.default_rng(9)
    experts = _choices('random', rng, 6, 4, 2)
    shapes = ((6, 5), (6, 2), None, (4, 5, 7), (4, 5, 7), (4, 7, 5))
    inputs = [experts if s is None else rng.standard_normal(s) for s in shapes]
    dy = rng.standard_normal((6, 5))
    gradients = iter(oracle.grouped_swiglu_gradients(*inputs, dy))
    for index in (0, 1, 3, 4, 5):
      direction = rng.standard_normal(shapes[index])
      values = []
      for step in (1e-5, -1e-5):
        moved = list(inputs)
        moved[index] = inputs[index] + step * direction
        values.append(np.sum(oracle.grouped_swiglu(*moved) * dy))
      slope = (values[0] - values[1]) / 2e-5
      along = np.sum(next(gradients) * direction)
      self.assertAlmostEqual(along / slope, 1, delta=1e-6)


if __name__ == '__main__':
  absltest.main()
