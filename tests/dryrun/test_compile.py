"""The dry run counts what the program does."""

from absl.testing import absltest
import pytest
from virtual_devices import run_script

from seekax.dryrun import gpus


def dry_run(mesh: str, *topology: str):
  return run_script('dryrun/small_dry_run.py', 8, mesh, *topology)


class DryRunTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.found = dry_run('data:2,expert_node:2,expert:2')

  def sent(self, kind, of='collectives'):
    rows = self.found[of]
    return {r['axis']: r['bytes'] for r in rows if r['kind'] == kind}

  def test_arguments_are_what_names_and_sizes_say(self):
    self.assertEqual(self.found['arguments_bytes'], self.found['state_bytes'])

  def test_what_is_exchanged_is_what_the_formula_says(self):
    self.assertEqual(self.sent('all-to-all'), self.found['exchanged'])

  def test_ranks_gather_weights_and_scatter_gradients_once_per_step(self):
    for kind, expected in self.found['moved'].items():
      self.assertEqual(sum(self.sent(kind).values()), expected, kind)
    self.assertEmpty(self.sent('all-gather', 'update_collectives'))

  def test_nothing_of_an_activation_s_size_is_gathered_or_summed(self):
    rows = self.found['collectives']
    # Losses, loads, norms; an activation is 2 rows of 32 tokens of 64 values.
    sums = [r['bytes'] / r['count'] for r in rows if r['kind'] == 'all-reduce']
    self.assertLess(max(sums), 512)

  @pytest.mark.slow
  def test_stages_send_activations_to_stages_and_the_rest_once_per_step(self):
    found = dry_run('pipeline:2,data:2,expert:2')
    self.assertEqual(found['arguments_bytes'], found['state_bytes'])
    rows = found['collectives']
    sent = {r['axis']: r for r in rows if r['kind'] == 'collective-permute'}
    self.assertEqual(list(sent), ['pipeline'])
    # Forward, backward, and an input that is left with the other stage: in
    # four ticks, of 4 rows of 32 tokens each. Then some loads.
    activations = 3 * 4 * 4 * 32 * 64 * 2
    self.assertBetween(sent['pipeline']['bytes'] - activations, 0, 64)
    # Between masters and stages nothing crosses more than one axis.
    swaps = {r['axis']: r for r in rows if r['kind'] == 'all-to-all'}
    self.assertEqual(set(swaps), {'expert', 'pipeline'})
    # A rank runs its own stage in two of the four ticks: the last one has an
    # expert layer and MTP. Each is 4 swaps forward, and again for the backward
    # pass, which has 6.
    self.assertEqual(swaps['expert']['count'], 2 * 2 * (4 + 4 + 6))

  @pytest.mark.slow
  @pytest.mark.skipif(
    not gpus.has_compiler(), reason='no CUDA plugin of JAX is installed'
  )
  def test_gpus_that_are_not_there_hold_and_send_the_same(self):
    found = dry_run('data:2,expert_node:2,expert:2', 'h100:1x8')
    for key in ('arguments_bytes', 'outputs_bytes', 'collectives'):
      self.assertEqual(found[key], self.found[key], key)
    self.assertGreater(found['temporaries_bytes'], 0)
    chosen = {row['subject']: row['name'] for row in found['backends']}
    self.assertEqual(
      chosen, {'attention': 'chunked', 'grouped matmul': 'pallas'}
    )
    self.assertGreater(found['custom_calls']['__gpu$xla.gpu.triton'], 0)


if __name__ == '__main__':
  absltest.main()
