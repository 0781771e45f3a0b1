"""Ranks of a batch add up their gradients apart, and sum them once."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from virtual_devices import run_script

from seekax.parallel import ranks, rules


class RanksTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.found = run_script('parallel/ranks_cases.py', 4)

  def test_sums_are_those_of_one_device(self):
    self.assertLen(self.found, 5)
    for mesh, found in self.found.items():
      self.assertEqual(found['count'], 24, mesh)
      for name, distance in found['distance'].items():
        self.assertLess(distance, 1e-6, f'{mesh}: {name}')

  def test_every_rank_keeps_its_part_where_the_master_divides(self):
    for mesh, found in self.found.items():
      parts = 1 if mesh == 'data:1' else 4
      self.assertEqual(found['shards']['into'], 96 // parts, mesh)
      # Its 5 divide by nothing.
      self.assertEqual(found['shards']['offset'], 5, mesh)

  def test_three_micro_batches_are_scattered_once(self):
    for mesh in ('data:4', 'data:2,expert:2', 'data:2,fsdp:2'):
      kinds = self.found[mesh]['kinds']
      # Of the two arrays that divide; the third is summed.
      self.assertEqual(kinds['reduce-scatter'], 2, mesh)
      self.assertNotIn('all-gather', kinds, mesh)


class OneDeviceTest(absltest.TestCase):
  def test_there_is_no_leading_axis(self):
    x = jnp.arange(6.0).reshape(2, 3)
    names = rules.axes('embed', None)
    run = ranks.apart(lambda x: (2 * x, x.sum()), (names,), names)
    partial, total = run(x)
    np.testing.assert_array_equal(partial, 2 * x)
    self.assertEqual(float(total), 15)
    self.assertIs(ranks.summed(partial, names), partial)
    zero = ranks.zeros(jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), names)
    self.assertEqual((zero.shape, zero.dtype), ((2, 3), jnp.float32))


if __name__ == '__main__':
  absltest.main()
