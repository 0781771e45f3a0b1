"""A step on a mesh is the step of one device."""

import itertools
import json

from absl.testing import absltest
import pytest
from virtual_devices import run_script

_FP8 = dict(precision='fp8', init_std=0.02, length=64, steps=1)
AXES = ('data', 'fsdp', 'expert_node', 'expert', 'context', 'tensor')
ALONE = {axis: dict(mesh=f'{axis}:4') for axis in AXES}
QUICK = ALONE | {'data_expert': dict(mesh='data:2,expert:2')}
ON_FOUR = {
  'context_in_chunks': dict(mesh='context:2,data:2', length=512, steps=2),
  # Its loss falls later than the others'.
  'context_of_keys': dict(mesh='context:2,tensor:2', attention='mha', steps=5),
  'gather': dict(mesh='expert:4', exchange='gather'),
  'scanned_recomputed': dict(
    mesh='data:2,expert:2', unroll_layers=0, remat='full'
  ),
  'one_expert': dict(mesh='data:2,expert:2', crowded=True),
  'fp8': dict(mesh='data:2,expert:2', dispatch_dtype='float8', **_FP8),
}
# That of data with experts is above.
PAIRS = {
  f'{one}_{other}': dict(mesh=f'{one}:4,{other}:2')
  for one, other in itertools.combinations(AXES, 2)
  if (one, other) != ('data', 'expert')
}
OF_THREE = {
  'data_expert_tensor': dict(mesh='data:2,expert:2,tensor:2'),
  'data_nodes_experts': dict(mesh='data:2,expert_node:2,expert:2'),
}


class MeshCase(absltest.TestCase):
  def check(self, variants, num_devices):
    words = json.dumps(variants)
    found = run_script('parallel/mesh_variants.py', num_devices, words)
    self.assertLen(found['variants'], len(variants))
    for name, got in found['variants'].items():
      with self.subTest(name):
        # Masters lie over every axis but `context`.
        alone = variants[name]['mesh'] == 'context:4'
        self.assertEqual(got['sharded_leaves'] > 0, not alone)
        if variants[name].get('precision') == 'fp8':
          # One bit more before E4M3 is 6 % after it.
          self.assertLess(got['first_loss'], 1e-3)
          continue
        # Choices are clear, in all variants.
        self.assertGreater(got['margin'], 1e-5)
        self.assertLess(got['first_loss'], 1e-6)
        self.assertLess(got['gradient'], 1e-5, got['leaf'])
        self.assertTrue(got['same_load'])
        self.assertTrue(got['loss_fell'])
        self.assertLess(got['last_loss'], 1e-4)


# Classes, since they are what is dealt out to processes.
class QuickTest(MeshCase):
  def test_each_axis_alone_and_data_with_experts(self):
    self.check(QUICK, 4)


@pytest.mark.slow
class WaysTest(MeshCase):
  def test_ways_to_compute_on_four_devices(self):
    self.check(ON_FOUR, 4)


@pytest.mark.slow
class FirstPairsTest(MeshCase):
  def test_pairs_with_data_or_fsdp_on_eight_devices(self):
    self.check(dict(list(PAIRS.items())[:8]), 8)


@pytest.mark.slow
class OtherPairsTest(MeshCase):
  def test_other_pairs_and_some_of_three_on_eight_devices(self):
    self.check(dict(list(PAIRS.items())[8:]) | OF_THREE, 8)


if __name__ == '__main__':
  absltest.main()
