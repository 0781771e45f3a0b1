"""The exchange on four devices gives the plain sum over experts."""

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
from virtual_devices import run_script

from parallel import exchange_cases
from seekax.configuration.compute import ComputeConfig
from seekax.configuration.model import ModelConfig
from seekax.model import router
from seekax.parallel import exchange, exchange_levels


class ExchangeTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    printed = run_script('parallel/exchange_cases.py', 4)
    cls.found, cls.cuda = printed['cases'], printed['ragged_for_cuda']

  def test_every_way_gives_the_plain_sum_and_its_gradients(self):
    self.assertLen(self.found, len(exchange_cases.CASES))
    for name, found in self.found.items():
      # E4M3 keeps 3 bits of each value of a token.
      bound = 0.05 if 'float8' in name else 1e-6
      for key in ('y', 'x', 'gates', 'weights'):
        self.assertLess(found[key], bound, f'{name}: {key}')
        if 'float8' in name:
          self.assertGreater(found[key], 1e-3, f'{name}: {key}')

  def test_a_gpu_gets_the_ragged_collective(self):
    # Rows there and back, in the first round and in the loop of the others.
    self.assertEqual(self.cuda, 4)

  def test_rounds_go_on_until_nobody_has_rows_left(self):
    for name in ('one_level', 'two_levels', 'gather', 'ragged'):
      self.assertEqual(self.found[name]['rounds'], 1, name)
    for name in (
      'crowded',
      'crowded_two_levels',
      'little_room',
      'ragged_crowded',
    ):
      self.assertGreater(self.found[name]['rounds'], 1, name)

  def test_bytes_are_sent_where_float8_is_asked_for(self):
    for name, found in self.found.items():
      self.assertEqual(found['bytes'], 'float8' in name, name)


class RoomTest(parameterized.TestCase):
  """By hand: DeepSeek-V3 on 8 nodes of 8, 4,096 tokens to a device."""

  MODEL = ModelConfig(
    num_experts=256,
    experts_per_token=8,
    num_expert_groups=8,
    num_kept_groups=4,
  )
  EXACT = ComputeConfig(exchange_slack=1.0)

  def test_a_token_goes_to_as_many_nodes_as_groups_are_kept(self):
    sizes = {'expert_node': 8, 'expert': 8}
    nodes, ranks = exchange_levels.levels(self.MODEL, self.EXACT, sizes, 4096)
    self.assertEqual(nodes.rows * nodes.ranks, 4096 * 4)
    # Of what arrives at a node, as many choices as left are computed in it.
    self.assertEqual(ranks.rows * ranks.ranks, 4096 * 8)
    self.assertEqual((nodes.inner, ranks.inner), (8, 1))

  def test_rows_that_cross_nodes_are_no_more_than_kept_groups(self):
    """Of the rows that there are; the room for them has its slack besides."""
    model, compute = self.MODEL, ComputeConfig(exchange_slack=1.25)
    sizes = {'expert_node': 8, 'expert': 8}
    nodes, _ = exchange_levels.levels(model, compute, sizes, 512)
    self.assertEqual(nodes.rows * nodes.ranks, 1.25 * 512 * 4)
    logits = np.random.default_rng(0).standard_normal((512, 256))
    routing = router.route(
      jnp.asarray(logits, jnp.float32), jnp.zeros(256), model
    )
    items = exchange.find_items(nodes, routing.experts_TA, 32)
    crossing = {
      (token, expert // 32)
      for token, own in enumerate(np.asarray(routing.experts_TA))
      for expert in own
    }
    self.assertEqual(int(items.sizes_R.sum()), len(crossing))
    self.assertLessEqual(len(crossing), 512 * model.num_kept_groups)
    # 8 experts of 4 groups: most tokens go to all four nodes.
    self.assertGreater(len(crossing), 512 * 3)

  def test_no_more_room_than_rows_there_can_be(self):
    (only,) = exchange_levels.levels(self.MODEL, self.EXACT, {'expert': 64}, 1)
    self.assertEqual(only.rows, 8)
    none = exchange_levels.levels(self.MODEL, self.EXACT, {'data': 8}, 64)
    self.assertEqual(none, ())


if __name__ == '__main__':
  absltest.main()
