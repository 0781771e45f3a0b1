"""FP8 products and gradients against float64 ones of the same operands."""

import dataclasses

from absl.testing import absltest, parameterized
from hypothesis import given, strategies
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases, sweeps
from reference import fp8 as oracle
from seekax.configuration.fp8 import Fp8Config
from seekax.ops import precision
from seekax.ops.block_fp8_products import Fp8Products
from seekax.ops.grouped_matmul import grouped_swiglu
from seekax.ops.linear import linear, swiglu, SwigluProducts

_FLOOR = 1e-4
# Of a share: FP8 has 4 significant bits, and an operand one bit of float32
# off may have another code. What differs without FP8 is ten times that.
_SAME_CODES = 4e-3


def _vjp(function, products):
  def run(dy, *args):
    out, pullback = jax.vjp(lambda *a: function(*a, products), *args)
    return out, *pullback(dy)

  return cases.jit(run)


def _normal(seed: int, *shapes) -> list[np.ndarray]:
  rng = np.random.default_rng(seed)
  spread = 2.0 ** rng.integers(-6, 6, len(shapes))
  return [
    (s * rng.standard_normal(shape)).astype(np.float32)
    for s, shape in zip(spread, shapes, strict=True)
  ]


def _distance(actual, expected) -> float:
  """Frobenius, as a share."""
  expected = np.asarray(expected, np.float64)
  difference = np.linalg.norm(np.asarray(actual, np.float64) - expected)
  return float(difference / np.linalg.norm(expected))


class LinearTest(parameterized.TestCase):
  def _operands(self, x, w, dy, products: Fp8Products):
    """(a, b) of the three products, rounded by the oracle, in float64."""
    recipe = products.recipe
    tensor = recipe.scaling == 'tensor'
    size = 0 if tensor else recipe.tile_size
    one = 0 if tensor else 1
    into = dict(floor=_FLOOR, power_of_two=products.power_of_two_input)
    gradient = dict(
      kind=recipe.gradient_format, power_of_two=products.power_of_two_gradient
    )
    own, wide = (one, size), (size, one)
    if recipe.gradient_scaling == 'blocks':
      own = wide = (size, size)
    w = oracle.round_tiles(w, size, size)
    row = oracle.round_tiles(x, one, size, **into)
    column = oracle.round_tiles(x, size, one, **into)
    return [
      (row, w),
      (oracle.round_tiles(dy, *own, **gradient), w.T),
      (column.T, oracle.round_tiles(dy, *wide, **gradient)),
    ]

  def _check(self, products, x, w, dy):
    found = _vjp(linear, products)(dy, x, w)
    pairs = self._operands(x, w, dy, products)
    for actual, pair in zip(found, pairs, strict=True):
      a, b = (operand.astype(np.float64) for operand in pair)
      bound = 128 * 2.0**-24 * (np.abs(a) @ np.abs(b))
      self.assertTrue(np.all(np.abs(actual - a @ b) <= bound))

  @sweeps.SWEEP
  @given(
    rows=strategies.integers(1, 40),
    into=strategies.integers(1, 300),
    out=strategies.integers(1, 40),
    seed=sweeps.seeds,
  )
  def test_three_products_of_v3s_tiles(self, rows, into, out, seed):
    x, w, dy = _normal(seed, (rows, into), (into, out), (rows, out))
    self._check(Fp8Products(Fp8Config()), x, w, dy)

  @parameterized.parameters(
    dict(scaling='tensor'),
    dict(gradient_format='e5m2'),
    dict(gradient_scaling='blocks'),
    dict(gradient_scaling='blocks', gradient_format='e5m2'),
  )
  def test_three_products_of_its_ablations(self, **ablation):
    products = Fp8Products(Fp8Config(tile_size=8, **ablation), True, True)
    self._check(products, *_normal(0, (21, 30), (30, 13), (21, 13)))

  @parameterized.parameters(
    dict(accumulation='tensor_core', tile_size=32),
    dict(accumulation='unpromoted', scaling='tensor'),
  )
  def test_fourteen_bits(self, **ablation):
    products = Fp8Products(Fp8Config(**ablation))
    x, w, dy = _normal(1, (40, 70), (70, 5), (40, 5))
    found = _vjp(linear, products)(dy, x, w)
    pairs = self._operands(x, w, dy, products)
    for actual, (a, b) in zip(found, pairs, strict=True):
      if products.recipe.scaling == 'tensor':
        # Scales are the operands' own: codes are what is left.
        scales = [
          oracle.tile_scale(np.abs(v).max(), 'e4m3', False, 0.0) for v in (a, b)
        ]
        codes = [
          np.rint(v / s * 512) / 512
          for v, s in zip((a, b), scales, strict=True)
        ]
        expected = oracle.tensor_core_product(*codes) * np.prod(
          np.float64(scales)
        )
        self.assertLess(cases.difference(actual, expected), 1e-6)
      exact = a.astype(np.float64) @ b
      self.assertGreater(_distance(actual, exact), 1e-6)
      self.assertLess(_distance(actual, exact), 1e-2)

  def test_dtypes_and_the_weights_float32_gradient(self):
    products = Fp8Products(Fp8Config())
    x, dy = (jnp.ones(s, jnp.bfloat16) for s in ((3, 4), (3, 5)))
    w = jnp.ones((4, 5), jnp.float32)
    found = _vjp(linear, products)(dy, x, w)
    dtypes = [leaf.dtype.name for leaf in found]
    self.assertEqual(dtypes, ['bfloat16', 'bfloat16', 'float32'])

  def test_what_is_no_number_is_seen(self):
    x, w, dy = _normal(2, (3, 10), (10, 4), (3, 4))
    x[1, 3] = np.inf
    y, _, dw = _vjp(linear, Fp8Products(Fp8Config(tile_size=4)))(dy, x, w)
    np.testing.assert_array_equal(
      np.isnan(y), [[False] * 4, [True] * 4, [False] * 4]
    )
    self.assertTrue(np.isnan(dw[3]).all())
    self.assertFalse(np.isnan(dw[4:]).any())


class SwigluTest(parameterized.TestCase):
  def _inputs(self, seed, rows):
    rng = np.random.default_rng(seed)
    shapes = (rows, 10), (10, 7), (10, 7), (7, 10), (rows, 10)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]

  @parameterized.parameters(range(3))
  def test_dense_ffn_and_gradients_match_oracle(self, seed):
    x, gate, up, down, dy = self._inputs(seed, 21)
    policy = precision.fp8(Fp8Config(tile_size=4))
    found = _vjp(swiglu, policy.ffn)(dy, x, gate, up, down)
    y, dx, _, *dw = oracle.swiglu(
      x, gate, up, down, dy, np.ones(21), 4, routed=False
    )
    for actual, expected in zip(found, (y, dx, *dw), strict=True):
      self.assertLess(_distance(actual, expected), _SAME_CODES)

  def test_without_fp8_it_is_ten_times_as_far(self):
    """Else the law above would hold without quantising anything."""
    x, gate, up, down, dy = self._inputs(0, 21)
    found = _vjp(swiglu, precision.HIGH.ffn)(dy, x, gate, up, down)
    y, dx, _, *dw = oracle.swiglu(
      x, gate, up, down, dy, np.ones(21), 4, routed=False
    )
    for actual, expected in zip(found, (y, dx, *dw), strict=True):
      self.assertGreater(_distance(actual, expected), 5 * _SAME_CODES)

  def test_inputs_of_swiglu_are_stored_in_eight_bits(self):
    policy = precision.fp8(Fp8Config())
    stored = policy.routed.into.store(jnp.ones((6, 256)), 'swiglu_up')
    self.assertEqual(stored.codes.dtype, np.uint8)
    self.assertEqual(stored.scales.shape, (6, 2))
    np.testing.assert_allclose(policy.routed.into.load(stored), 1, rtol=1e-6)


@cases.jit
def _routed(x, gates, experts, gate, up, down, dy):
  products = precision.fp8(Fp8Config(tile_size=4)).routed

  def run(x, gates, gate, up, down):
    return grouped_swiglu(
      x,
      gates,
      experts,
      gate,
      up,
      down,
      backend='blocked',
      products=products,
    )

  out, pullback = jax.vjp(run, x, gates, gate, up, down)
  return out, *pullback(dy)


class RoutedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('balanced', (8, 8, 8, 8, 8, 8)),
    ('empty_groups', (0, 0, 9, 20, 0, 9)),
    ('one_takes_all', (0, 0, 48, 0, 0, 0)),
    ('nobody_some', (5, 0, 18, 1, 7, 2)),
    ('nothing', (0, 0, 0, 0, 0, 0)),
  )
  def test_experts_and_gradients_match_oracle(self, sizes):
    """Blocks hold whole tiles of 4 rows, so that tiles are an expert's own."""
    rng = np.random.default_rng(0)
    experts = np.repeat(np.arange(7), (*sizes, 48 - sum(sizes)))[:, None]
    order = rng.permutation(48)
    experts = experts[order].astype(np.int32)
    shapes = (48, 10), (6, 10, 7), (6, 10, 7), (6, 7, 10), (48, 10)
    x, gate, up, down, dy = (
      rng.standard_normal(s).astype(np.float32) for s in shapes
    )
    gates = rng.uniform(0.1, 1, (48, 1)).astype(np.float32)
    found = _routed(x, gates, experts, gate, up, down, dy)
    expected = [np.zeros(leaf.shape) for leaf in found]
    for e in range(6):
      own = np.flatnonzero(experts[:, 0] == e)
      if own.size:
        y, dx, dscale, *dw = oracle.swiglu(
          x[own], gate[e], up[e], down[e], dy[own], gates[own, 0], 4, True
        )
        expected[0][own], expected[1][own] = y, dx
        expected[2][own, 0] = dscale
        for place, gradient in zip(expected[3:], dw, strict=True):
          place[e] = gradient
    for actual, e in zip(found, expected, strict=True):
      if np.any(e):
        self.assertLess(_distance(actual, e), _SAME_CODES)
      np.testing.assert_array_equal(np.asarray(actual)[e == 0], 0)

  def test_of_few_slots_it_has_a_gradient(self):
    """Decoding's way round would differentiate the rounding, to 0."""
    rng = np.random.default_rng(1)
    shapes = (1, 10), (6, 10, 7), (6, 10, 7), (6, 7, 10), (1, 10)
    x, gate, up, down, dy = (
      rng.standard_normal(s).astype(np.float32) for s in shapes
    )
    gates, experts = np.ones((1, 1), np.float32), np.array([[4]], np.int32)
    _, dx, _, dgate, *_ = _routed(x, gates, experts, gate, up, down, dy)
    self.assertGreater(np.abs(dx).max(), 0.01)
    self.assertGreater(np.abs(dgate[4]).max(), 0.01)

  def test_products_of_two_kinds_are_not_equal(self):
    """They are constants of compiled programs."""
    recipe = Fp8Config()
    kinds = {
      Fp8Products(recipe),
      Fp8Products(recipe, power_of_two_input=True),
      Fp8Products(dataclasses.replace(recipe, tile_size=64)),
    }
    self.assertLen(kinds, 3)
    self.assertEqual(SwigluProducts(), precision.HIGH.routed)


if __name__ == '__main__':
  absltest.main()
