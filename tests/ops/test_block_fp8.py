"""Codes and scales agree with the oracle to the bit."""

import dataclasses

from absl.testing import absltest, parameterized
from hypothesis import given, strategies
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from reference import cases, sweeps
from reference import fp8 as oracle
from seekax.machine import compiling
from seekax.ops import block_fp8 as ops

_SHAPE = (5, 11)
# Whole tiles, partial ones, one for all.
_TILES = {
  'row': (1, 4),
  'wide_row': (1, 128),
  'column': (2, 1),
  'block': (4, 4),
  'tensor': (0, 0),
}
_quantize = cases.jit(ops.quantize, static_argnums=1)
_rounded = cases.jit(ops.rounded, static_argnums=1)


def _draw(seed: int, spread: float, shape=_SHAPE) -> np.ndarray:
  """Numbers over many powers of two, some of them 0 of either sign."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal(shape) * 2.0 ** rng.uniform(-spread, spread, shape)
  x = np.where(rng.random(shape) < 0.1, 0 * x, x)
  return x.astype(np.float32)


class QuantizeTest(parameterized.TestCase):
  def _check(self, x, tiling: ops.Tiling, kind: str = 'e4m3'):
    x = np.asarray(x, np.float32)
    tiles = jax.device_get(_quantize(x, tiling))
    codes, scales = oracle.quantize_tiles(
      x, tiling.rows, tiling.columns, kind, tiling.power_of_two, tiling.floor
    )
    np.testing.assert_array_equal(tiles.scales, scales)
    nan = codes == 255
    np.testing.assert_array_equal(tiles.codes[~nan], codes[~nan])
    np.testing.assert_array_equal(
      np.isnan(tiles.codes.view(tiling.format.dtype).astype(np.float32)), nan
    )
    return tiles

  @parameterized.product(
    tile=tuple(_TILES), kind=('e4m3', 'e5m2'), power_of_two=(False, True)
  )
  @sweeps.SWEEP
  @given(seed=sweeps.seeds, spread=strategies.sampled_from((0, 4, 40)))
  def test_codes_and_scales_are_the_oracles(
    self, tile, kind, power_of_two, seed, spread
  ):
    tiling = ops.Tiling(*_TILES[tile], ops.FORMATS[kind], power_of_two)
    x = _draw(seed, spread)
    tiles = self._check(x, tiling, kind)
    expected = oracle.round_tiles(
      x, *_TILES[tile], kind=kind, power_of_two=power_of_two
    )
    np.testing.assert_array_equal(ops.dequantize(tiles, tiling), expected)
    np.testing.assert_array_equal(_rounded(x, tiling), expected)

  def test_every_value_and_every_tie_between_two(self):
    """Ties go to the even code; subnormal codes are evenly spaced."""
    values = np.array([oracle.value(code) for code in range(0x7F)])
    x = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    x = np.concatenate([x, -x, np.nextafter(x, 1e3), np.nextafter(x, -1e3)])
    # 448 beside them makes the scale one that keeps them as they are.
    rows = np.stack([x, np.full_like(x, 448)], axis=1)
    tiling = ops.Tiling(1, 2, power_of_two=True)
    self.assertEqual(set(self._check(rows, tiling).scales.ravel()), {1.0})

  @parameterized.parameters(False, True)
  def test_scales_of_neighbours_of_powers_of_two(self, power_of_two):
    powers = 2.0 ** np.arange(-60, 60, dtype=np.float32)
    largest = np.concatenate([np.nextafter(powers, 0), powers])
    largest = np.concatenate([largest, np.nextafter(powers, np.float32(1e30))])
    x = np.concatenate([largest, np.float32(448) * largest])[:, None]
    self._check(x, ops.Tiling(1, 1, power_of_two=power_of_two))

  def test_zeros_and_subnormal_numbers(self):
    tiny = np.float32(2) ** -np.arange(100, 150, dtype=np.float32)
    rows = np.stack([tiny, -tiny], axis=1)
    tiles = self._check(rows, ops.Tiling(1, 2))
    self.assertTrue(np.any(tiles.codes & 0x7F))
    zeros = self._check(np.zeros((3, 5)), ops.Tiling(1, 4))
    self.assertFalse(np.any(zeros.codes))
    self.assertTrue(np.all(zeros.scales > 0))

  def test_activations_below_the_floor_share_its_scale(self):
    x = np.float32(10) ** -np.arange(3, 12, dtype=np.float32)[:, None]
    tiling = ops.Tiling(1, 128, floor=ops.ACTIVATION_FLOOR)
    scales = self._check(x, tiling).scales[:, 0]
    floor = np.float32(1e-4) * np.float32(1 / 448)
    np.testing.assert_array_equal(scales[2:], floor)
    self.assertGreater(scales[0], floor)

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_what_is_no_number_makes_its_tile_none(self, value):
    x = _draw(0, 0)
    x[2, 5] = value
    for power_of_two in (False, True):
      tiling = ops.Tiling(1, 4, power_of_two=power_of_two)
      with np.errstate(invalid='ignore'):
        self._check(x, tiling)
      nan = np.isnan(_rounded(x, tiling))
      self.assertTrue(nan[2, 4:8].all())
      self.assertEqual(nan.sum(), 4)

  def test_bfloat16_is_what_its_float32_is(self):
    x = _draw(1, 4).astype(ml_dtypes.bfloat16)
    self._check(x, ops.Tiling(1, 4))

  def test_matrices_of_a_batch_have_tiles_of_their_own(self):
    x = _draw(2, 8, (3, *_SHAPE))
    for tile in _TILES.values():
      tiling = ops.Tiling(*tile)
      together = _quantize(x, tiling)
      for i in range(3):
        alone = _quantize(x[i], tiling)
        np.testing.assert_array_equal(together.codes[i], alone.codes)
        np.testing.assert_array_equal(together.scales[i], alone.scales)

  def test_a_partial_tile_is_one_filled_with_zeros(self):
    x = _draw(3, 8)
    filled = np.zeros((8, 12), np.float32)
    filled[:5, :11] = x
    for tile in ((1, 4), (4, 1), (4, 4)):
      found = _rounded(x, ops.Tiling(*tile))
      expected = _rounded(filled, ops.Tiling(*tile))[:5, :11]
      np.testing.assert_array_equal(found, expected)

  def test_powers_of_two_survive_other_tiles(self):
    """Why V3 has them: what is divided anew loses nothing."""
    x = _draw(4, 2, (8, 8))
    row = ops.Tiling(1, 4, power_of_two=True)
    column = dataclasses.replace(row, rows=8, columns=1)
    once = _rounded(x, row)
    np.testing.assert_array_equal(_rounded(once, column), once)
    plain = _rounded(x, dataclasses.replace(row, power_of_two=False))
    again = _rounded(plain, dataclasses.replace(column, power_of_two=False))
    self.assertTrue(np.any(again != plain))

  def test_optimised_programs_give_the_same_bits(self):
    """A compiler that fuses products with sums would round otherwise."""
    x = _draw(5, 8, (96, 300))
    for tile in ((1, 128), (128, 1), (128, 128), (0, 0)):
      tiling = ops.Tiling(*tile)
      program = compiling.jit(lambda x, t=tiling: ops.rounded(x * 3.0, t))
      found, expected = program(x), _rounded(x * np.float32(3), tiling)
      np.testing.assert_array_equal(found, expected)

  def test_stored_tiles_take_half_of_bfloat16(self):
    tiles = jax.eval_shape(
      lambda x: ops.quantize(x, ops.Tiling(1, 128)),
      jax.ShapeDtypeStruct((64, 1024), jnp.bfloat16),
    )
    size = sum(
      leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tiles)
    )
    self.assertEqual(size, 64 * 1024 + 64 * 8 * 4)


if __name__ == '__main__':
  absltest.main()
