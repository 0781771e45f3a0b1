import dataclasses
import itertools

from absl.testing import absltest, parameterized
import numpy as np

from seekax import presets
from seekax.planning import traffic
from seekax.planning.layout import Layout


def _small(experts, chosen, groups, kept):
  return dataclasses.replace(
    presets.tiny(),
    num_experts=experts,
    experts_per_token=chosen,
    num_expert_groups=groups,
    num_kept_groups=kept,
    group_score='max',
  )


def _mean_by_enumeration(model, nodes: int) -> float:
  """All kept groups and all choices within them, each as likely."""
  per_group = model.num_experts // model.num_expert_groups
  per_node = model.num_experts // nodes
  counts = []
  for kept in itertools.combinations(
    range(model.num_expert_groups), model.num_kept_groups
  ):
    pool = [g * per_group + i for g in kept for i in range(per_group)]
    for chosen in itertools.combinations(pool, model.experts_per_token):
      counts.append(len({expert // per_node for expert in chosen}))
  return float(np.mean(counts))


class NodesTest(parameterized.TestCase):
  @parameterized.parameters(
    (8, 2, 4, 2, 4),  # A group to a node.
    (12, 3, 4, 2, 4),
    (8, 2, 1, 1, 4),  # No groups.
    (12, 3, 2, 1, 4),  # Two nodes to a group.
    (8, 2, 1, 1, 1),
  )
  def test_mean_equals_an_enumeration(self, experts, chosen, groups, kept, n):
    model = _small(experts, chosen, groups, kept)
    self.assertAlmostEqual(
      traffic.mean_nodes_per_token(model, n), _mean_by_enumeration(model, n)
    )

  @parameterized.parameters(
    (8, 4, 4, 2, 4, 2),  # M bounds.
    (8, 1, 4, 2, 4, 1),  # K bounds.
    (8, 4, 4, 2, 2, 2),  # Nodes bound.
    (16, 4, 2, 1, 4, 2),  # Two nodes to the one group.
    (16, 4, 1, 1, 4, 4),
  )
  def test_bound_is_reached_and_never_passed(
    self, experts, chosen, groups, kept, nodes, bound
  ):
    model = _small(experts, chosen, groups, kept)
    self.assertEqual(traffic.most_nodes_per_token(model, nodes), bound)
    self.assertLessEqual(traffic.mean_nodes_per_token(model, nodes), bound)
    per_group, per_node = experts // groups, experts // nodes
    reached = max(
      len({expert // per_node for expert in chosen_experts})
      for kept_groups in itertools.combinations(range(groups), kept)
      for chosen_experts in itertools.combinations(
        [g * per_group + i for g in kept_groups for i in range(per_group)],
        chosen,
      )
    )
    self.assertEqual(reached, bound)

  def test_v3_crosses_to_at_most_four_nodes(self):
    v3 = presets.v3_671b()
    self.assertEqual(traffic.most_nodes_per_token(v3, 8), 4)
    self.assertBetween(traffic.mean_nodes_per_token(v3, 8), 3.5, 4)
    unlimited = dataclasses.replace(v3, num_expert_groups=1, num_kept_groups=1)
    self.assertAlmostEqual(  # As DeepSeek-V3's choice of 8 of 256 over 8 nodes.
      traffic.mean_nodes_per_token(unlimited, 8), 5.3, delta=0.05
    )


class BytesTest(absltest.TestCase):
  def test_exchange_by_hand(self):
    # 8 experts on 2 nodes of 2 devices, no groups, 1 choice, 64 wide: half of
    # the tokens cross, and on a node half go to the other device.
    model = _small(8, 1, 1, 1)
    layout = Layout(expert_node=2, expert=2)
    dispatch, combine = traffic.exchange_per_token(model, layout, fp8=False)
    self.assertEqual(dispatch, traffic.Bytes(0.5 * 64 * 2, 0.5 * 64 * 2))
    self.assertEqual(combine, dispatch)
    eight, _ = traffic.exchange_per_token(model, layout, fp8=True)
    self.assertAlmostEqual(eight.network, 0.5 * (64 + 64 / 128 * 4))

  def test_never_more_than_m_copies(self):
    v3, layout = presets.v3_671b(), Layout(expert_node=8, expert=8)
    dispatch, _ = traffic.exchange_per_token(v3, layout, fp8=False)
    bound = traffic.most_network_bytes_per_token(v3, layout, 2.0)
    self.assertEqual(bound, 4 * 7168 * 2)
    self.assertLess(dispatch.network, bound)

  def test_nothing_crosses_within_a_node(self):
    dispatch, _ = traffic.exchange_per_token(
      presets.v3_671b(), Layout(expert=8), fp8=False
    )
    self.assertEqual(dispatch.network, 0)
    self.assertEqual(dispatch.link, 8 * 7 / 8 * 7168 * 2)

  def test_sums_over_data_ranks_by_hand(self):
    layout = Layout(expert=4, data=2)
    # 80 values that 8 ranks share, 40 that 2 share: scattered and gathered.
    sent = traffic.data_parallel_per_step(80, 40, layout)
    self.assertEqual(sent.network, 2 * 2 * (80 * 7 / 8 + 40 / 2))

  def test_one_device_sends_nothing(self):
    model, alone = presets.v3_671b(), Layout()
    for sent in (
      *traffic.exchange_per_token(model, alone, fp8=True),
      traffic.pipeline_per_token(model, alone),
      traffic.tensor_per_token(model, alone),
      traffic.context_per_token(model, 4096, 4096),
      traffic.data_parallel_per_step(1e9, 1e9, alone),
      traffic.fsdp_per_pass(1e9, alone),
    ):
      self.assertEqual(sent, traffic.Bytes())

  def test_context_ranks_gather_latents_not_heads(self):
    v3 = presets.v3_671b()
    sent = traffic.context_per_token(v3, 4096, 1024)
    self.assertEqual(sent.network, 3 * 576 * 2)
    mha = dataclasses.replace(v3, attention='mha')
    heads = traffic.context_per_token(mha, 4096, 1024)
    self.assertEqual(heads.network, 3 * 128 * (192 + 128) * 2)


if __name__ == '__main__':
  absltest.main()
