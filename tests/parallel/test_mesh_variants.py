"""A step on a mesh is the step of one device."""

import json

from absl.testing import absltest
import pytest
from virtual_devices import run_script

_FP8 = dict(precision='fp8', init_std=0.02, length=64, steps=1)
QUICK = {
  'fsdp_tensor': dict(mesh='fsdp:2,tensor:2'),
}
ON_FOUR = {
  'data_expert': dict(mesh='data:2,expert:2'),
  'experts_over_nodes': dict(mesh='expert_node:2,expert:2'),
  'data': dict(mesh='data:4'),
  'fsdp': dict(mesh='fsdp:4'),
  'tensor': dict(mesh='tensor:4'),
  'context': dict(mesh='context:2,data:2'),
  'context_in_chunks': dict(mesh='context:2,data:2', length=512, steps=2),
  'context_of_keys': dict(mesh='context:2,tensor:2', attention='mha'),
  'expert': dict(mesh='expert:4'),
  'gather': dict(mesh='expert:4', exchange='gather'),
  'scanned_recomputed': dict(
    mesh='data:2,expert:2', unroll_layers=0, remat='full'
  ),
  'one_expert': dict(mesh='data:2,expert:2', crowded=True),
  'fp8': dict(mesh='data:2,expert:2', dispatch_dtype='float8', **_FP8),
}
ON_EIGHT = {
  'data_expert_tensor': dict(mesh='data:2,expert:2,tensor:2'),
  'data_nodes_experts': dict(mesh='data:2,expert_node:2,expert:2'),
  'fsdp_tensor': dict(mesh='fsdp:4,tensor:2'),
  'expert_context': dict(mesh='expert:4,context:2'),
  'fsdp_expert': dict(mesh='fsdp:2,expert:4'),
}


class MeshCase(absltest.TestCase):
  def check(self, variants, num_devices):
    words = json.dumps(variants)
    found = run_script('parallel/mesh_variants.py', num_devices, words)
    self.assertLen(found['variants'], len(variants))
    for name, got in found['variants'].items():
      with self.subTest(name):
        self.assertGreater(got['sharded_leaves'], 0)
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
  def test_on_four_devices(self):
    self.check(QUICK, 4)


@pytest.mark.slow
class AxesTest(MeshCase):
  def test_each_alone(self):
    self.check({k: v for k, v in ON_FOUR.items() if ',' not in v['mesh']}, 4)


@pytest.mark.slow
class PairsTest(MeshCase):
  def test_two_axes(self):
    self.check({k: v for k, v in ON_FOUR.items() if ',' in v['mesh']}, 4)


@pytest.mark.slow
class EightTest(MeshCase):
  def test_on_eight_devices(self):
    self.check(ON_EIGHT, 8)


if __name__ == '__main__':
  absltest.main()
