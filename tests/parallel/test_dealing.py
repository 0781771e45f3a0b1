"""Layers are dealt out so that the slowest stage has as little as can be."""

import itertools

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np

from seekax.parallel import dealing


class CountsTest(parameterized.TestCase):
  @parameterized.parameters(
    # V3: three dense layers on the first stage, MTP and final norm on the last.
    (58, 16, 3, 1, (1, *14 * (4,), 1)),
    (61, 16, 0, 0, (*15 * (4,), 1)),
    (5, 4, 1, 1, (1, 2, 2, 0)),
    (3, 2, 1, 1, (2, 1)),
    (2, 2, 3, 0, (0, 2)),
    # The last one would be the slowest anyway: room for one layer is enough.
    (2, 2, 0, 1, (1, 1)),
    (16, 16, 0, 1, 16 * (1,)),
    (1, 4, 0, 0, (1, 0, 0, 0)),
  )
  def test_examples(self, layers, stages, first, last, expected):
    self.assertEqual(dealing.counts(layers, stages, first, last), expected)

  def test_no_other_way_has_less_to_do_or_needs_less_room(self):
    def load(counts, first, last):
      return max(*counts[1:-1], counts[0] + first, counts[-1] + last)

    for layers, first, last in itertools.product(
      range(1, 7), (0, 1, 3), (0, 2)
    ):
      every = [
        counts
        for counts in itertools.product(range(layers + 1), repeat=3)
        if sum(counts) == layers
      ]
      best = min((load(c, first, last), max(c)) for c in every)
      found = dealing.counts(layers, 3, first, last)
      self.assertEqual(sum(found), layers)
      self.assertEqual((load(found, first, last), max(found)), best)


class DealtTest(absltest.TestCase):
  def test_layers_are_dealt_out_and_collected(self):
    x, counts = jnp.arange(1.0, 13).reshape(6, 2), (1, 3, 0, 2)
    staged = dealing.dealt(x, counts)
    self.assertEqual(staged.shape, (4, 3, 2))
    np.testing.assert_array_equal(staged[0, 1:], np.zeros((2, 2)))
    np.testing.assert_array_equal(staged[3, :2], x[4:])
    np.testing.assert_array_equal(dealing.collected(staged, counts), x)


if __name__ == '__main__':
  absltest.main()
