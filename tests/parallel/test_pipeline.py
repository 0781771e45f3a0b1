"""A step in a pipeline is the step of one device."""

import json

from absl.testing import absltest
import pytest
from virtual_devices import run_script

# Three expert layers over two stages, of which the first has a dense one too
# and the last MTP.
_FEW = dict(num_layers=4, unroll_layers=0)
# Five over four and over two, beside the same run of one device.
_FIVE = dict(num_layers=6, unroll_layers=0)
QUICK = {
  'four_stages': dict(mesh='pipeline:4', **_FIVE),
  'with_experts': dict(mesh='expert:2,pipeline:2', **_FIVE),
}
ON_FOUR = {
  'data': dict(mesh='data:2,pipeline:2', **_FEW),
  'written_out': dict(mesh='pipeline:4', num_layers=6),
  'recomputed': dict(mesh='pipeline:2', num_layers=4, remat='full'),
  'recomputed_scan': dict(mesh='pipeline:2', remat='paper', **_FEW),
  # Masters of this width lie whole on every stage.
  'undivided': dict(mesh='pipeline:4', embed_dim=34, **_FIVE),
  'fewer_parts_than_stages': dict(mesh='pipeline:4', parts=2, num_layers=5),
  # Its loss falls later than the others'.
  'one_expert': dict(mesh='expert:2,pipeline:2', crowded=True, steps=5, **_FEW),
  'fp8': dict(
    mesh='pipeline:2', precision='fp8', init_std=0.02, length=64, **_FEW
  ),
  'dense': dict(mesh='pipeline:2', ffn='dense', mtp_depth=0, **_FEW),
  'dense_mtp': dict(mesh='pipeline:2', ffn='dense', mtp_depth=2, **_FEW),
  'softmax_mtp': dict(mesh='pipeline:2', router='softmax', mtp_depth=2, **_FEW),
  'more_dense_layers': dict(
    mesh='pipeline:4', num_dense_layers=4, num_layers=6, unroll_layers=0
  ),
}
# Those with data and with experts are above, and both in the first of three.
PAIRS = {
  axis: dict(mesh=f'{axis}:4,pipeline:2', **_FEW)
  for axis in ('fsdp', 'expert_node', 'context', 'tensor')
}
OF_THREE = {
  'data_expert_pipeline': dict(mesh='data:2,expert:2,pipeline:2', **_FEW),
  # Where stages don't branch.
  'fsdp_tensor_pipeline': dict(mesh='fsdp:2,tensor:2,pipeline:2', **_FEW),
  'context_tensor_pipeline': dict(mesh='context:2,tensor:2,pipeline:2', **_FEW),
}


class ScheduleTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.found = run_script('parallel/pipeline_cases.py', 4)

  def test_gradients_and_sums_are_those_of_calls_in_turn(self):
    self.assertLen(self.found, 7)
    for case, found in self.found.items():
      self.assertLess(found['distance'], 1e-6, case)
      self.assertTrue(found['same_counts'], case)

  def test_memory_does_not_grow_with_micro_batches(self):
    few, many = self.found['(4, 4)'], self.found['(4, 16)']
    self.assertEqual(few['temporaries'], many['temporaries'])

  def test_as_many_stage_inputs_are_kept_as_there_are_stages(self):
    for stages, count in ((2, 5), (3, 7), (4, 16)):
      self.assertEqual(self.found[str((stages, count))]['kept'], stages)

  def test_stages_talk_to_neighbours_and_leave_inputs_with_their_mirror(self):
    self.assertEqual(
      self.found['(4, 4)']['permutes'],
      [
        '{{0,1},{1,2},{2,3}}',
        '{{0,3},{1,2},{2,1},{3,0}}',
        '{{1,0},{2,1},{3,2}}',
      ],
    )


class ModelCase(absltest.TestCase):
  def check(self, variants, num_devices):
    found = run_script(
      'parallel/pipeline_variants.py', num_devices, json.dumps(variants)
    )
    self.assertLen(found['variants'], len(variants))
    for name, got in found['variants'].items():
      with self.subTest(name):
        if variants[name].get('precision') == 'fp8':
          # One bit more before E4M3 is 6 % after it.
          self.assertLess(got['first_loss'], 1e-3)
          continue
        if got['margin'] is not None:
          self.assertGreater(got['margin'], 1e-5)
        if ',' not in variants[name]['mesh']:
          self.assertTrue(got['same_exchanges'])
        for key, distance in got['sums'].items():
          self.assertLess(distance, 1e-6, key)
        self.assertLess(got['gradient'], 1e-5, got['leaf'])
        self.assertTrue(got['same_load'])
        self.assertTrue(got['loss_fell'])
        self.assertLess(got['last_loss'], 1e-4)


# Classes, since they are what is dealt out to processes.
class QuickTest(ModelCase):
  def test_four_stages_and_two_with_experts(self):
    self.check(QUICK, 4)


@pytest.mark.slow
class WaysTest(ModelCase):
  def test_ways_to_compute_on_four_devices(self):
    self.check(dict(list(ON_FOUR.items())[:6]), 4)


@pytest.mark.slow
class OtherWaysTest(ModelCase):
  def test_other_ways_to_compute_on_four_devices(self):
    self.check(dict(list(ON_FOUR.items())[6:]), 4)


@pytest.mark.slow
class PairsTest(ModelCase):
  def test_pairs_and_three_on_eight_devices(self):
    self.check(PAIRS | OF_THREE, 8)


@pytest.mark.slow
class MemoryTest(absltest.TestCase):
  def test_memory_grows_with_micro_batches_by_themselves(self):
    found = run_script('parallel/pipeline_memory.py', 2)
    # Tokens, targets, positions and two numbers of documents, stacked.
    batch = found['micro_batch_bytes']
    grown = found['16'] - found['4']
    self.assertBetween(grown, 0, 12 * batch)


if __name__ == '__main__':
  absltest.main()
