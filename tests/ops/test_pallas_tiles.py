"""Which rows the tiles of a grouped product have."""

from absl.testing import absltest
from hypothesis import given, settings, strategies
import jax.numpy as jnp
import numpy as np

from reference import cases
from reference.sweeps import SWEEP
from seekax.ops import pallas_tiles

_row_tiles = cases.jit(pallas_tiles.row_tiles, static_argnums=(1, 2))


class RowTilesTest(absltest.TestCase):
  @settings(SWEEP, max_examples=30)
  @given(
    sizes=strategies.lists(strategies.integers(0, 50), min_size=5, max_size=5),
    beyond=strategies.integers(0, 40),
  )
  def test_every_row_is_in_one_tile_of_its_expert(self, sizes, beyond):
    # The shapes are few, so that the sweep compiles little.
    rows = -(-(sum(sizes) + beyond + 1) // 128) * 128
    owner = np.repeat(np.arange(6), [*sizes, rows - sum(sizes)])
    tiles = _row_tiles(np.array(sizes), rows, 16)
    self.assertLen(tiles.expert_N, -(-rows // 16) + len(sizes))
    seen = np.zeros(rows, int)
    for expert, first, end in zip(*map(np.asarray, tiles), strict=True):
      self.assertLessEqual(end - first, 16)
      seen[first:end] += 1
      np.testing.assert_array_equal(owner[first:end], expert)
    np.testing.assert_array_equal(seen, 1)

  def test_sizes_that_claim_too_much_stay_inside(self):
    tiles = pallas_tiles.row_tiles(jnp.array((20, 30, 7)), 32, 16)
    self.assertLessEqual(int(tiles.end_N.max()), 32)


if __name__ == '__main__':
  absltest.main()
