import dataclasses
import itertools

from absl.testing import absltest, parameterized
import numpy as np
import pytest
from virtual_devices import run_script

from seekax.configuration import presets
from seekax.configuration.compute import ComputeConfig
from seekax.parallel import exchange_levels
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
    dispatch, combine = traffic.exchange_per_token(
      model, layout, fp8=False, domain=2
    )
    self.assertEqual(dispatch, traffic.Bytes(0.5 * 64 * 2, 0.5 * 64 * 2))
    self.assertEqual(combine, dispatch)
    near, _ = traffic.exchange_per_token(model, layout, fp8=False, domain=4)
    self.assertEqual(near, traffic.Bytes(link=64 * 2))
    eight, _ = traffic.exchange_per_token(model, layout, fp8=True, domain=2)
    self.assertAlmostEqual(eight.network, 0.5 * (64 + 64 / 128 * 4))

  def test_never_more_than_m_copies(self):
    v3, layout = presets.v3_671b(), Layout(expert_node=8, expert=8)
    dispatch, _ = traffic.exchange_per_token(v3, layout, fp8=False)
    copies = traffic.most_nodes_per_token(v3, 8)
    self.assertEqual(copies, 4)
    self.assertLess(dispatch.network, copies * 7168 * 2)

  def test_nothing_crosses_within_a_node(self):
    dispatch, _ = traffic.exchange_per_token(
      presets.v3_671b(), Layout(expert=8), fp8=False
    )
    self.assertEqual(dispatch.network, 0)
    self.assertEqual(dispatch.link, 8 * 7 / 8 * 7168 * 2)

  def test_sums_over_data_ranks_by_hand(self):
    layout = Layout(expert=4, data=4)
    # 80 values that 16 ranks share, 40 that 4 share: float32 gradients are
    # scattered, bfloat16 weights gathered.
    sent = traffic.data_parallel_per_step(80, 40, layout)
    self.assertEqual(sent.network, (4 + 2) * (80 * 15 / 16 + 40 * 3 / 4))
    narrow = traffic.data_parallel_per_step(80, 40, layout, gradient=2.0)
    self.assertEqual(narrow.network, (2 + 2) * (80 * 15 / 16 + 40 * 3 / 4))
    within = traffic.data_parallel_per_step(80, 40, layout, domain=16)
    self.assertEqual(within, traffic.Bytes(link=sent.network))

  def test_fsdp_ranks_send_for_every_micro_batch_by_hand(self):
    layout = Layout(fsdp=4, data=8, expert=4)
    forward, backward = traffic.fsdp_per_micro_batch(80, layout)
    # Weights twice, in bfloat16; gradients once, in float32.
    self.assertEqual(forward.network, 80 * 3 / 4 * 2)
    self.assertEqual(backward.network, 80 * 3 / 4 * (2 + 4))
    # A quarter is left to the data ranks, once per step.
    once = traffic.data_parallel_per_step(0, 80, layout)
    self.assertEqual(once.network, 20 * 7 / 8 * (4 + 2))

  def test_context_ranks_within_a_node_use_its_links(self):
    v3 = presets.v3_671b()
    near = traffic.context_per_token(v3, 32768, 8192, Layout(context=4))
    far = traffic.context_per_token(v3, 32768, 2048, Layout(context=16))
    self.assertEqual((near.network, far.link), (0, 0))
    shared = traffic.context_per_token(v3, 32768, 4096, Layout(context=4))
    self.assertEqual(shared.link, 0)  # Data ranks share it too.

  def test_tensor_ranks_send_all_tokens_but_to_whole_experts(self):
    self.assertEqual(traffic.senders_per_token(Layout(tensor=2)), 2)
    whole = Layout(tensor=2, expert=4, whole_experts=True)
    self.assertEqual(traffic.senders_per_token(whole), 1)
    v3 = presets.v3_671b()
    dispatch, _ = traffic.exchange_per_token(v3, whole, fp8=False)
    alone, _ = traffic.exchange_per_token(v3, Layout(expert=8), fp8=False)
    self.assertEqual(dispatch, alone)

  def test_one_device_sends_nothing(self):
    model, alone = presets.v3_671b(), Layout()
    for sent in (
      *traffic.exchange_per_token(model, alone, fp8=True),
      traffic.pipeline_per_token(model, alone),
      traffic.tensor_per_token(model, alone),
      traffic.context_per_token(model, 4096, 4096, alone),
      traffic.data_parallel_per_step(1e9, 1e9, alone),
      *traffic.fsdp_per_micro_batch(1e9, alone),
    ):
      self.assertEqual(sent, traffic.Bytes())

  def test_context_ranks_gather_latents_not_heads(self):
    v3 = presets.v3_671b()
    layout = Layout(context=4)
    sent = traffic.context_per_token(v3, 4096, 1024, layout)
    self.assertEqual(sent.link, 3 * 576 * 2)
    mha = dataclasses.replace(v3, attention='mha')
    heads = traffic.context_per_token(mha, 4096, 1024, layout)
    self.assertEqual(heads.link, 3 * 128 * (192 + 128) * 2)


class ProgramTest(parameterized.TestCase):
  """What this program's exchange sends, and what it would have to."""

  @parameterized.parameters(
    (8, 8, 4096, 'compute', 2),
    (8, 8, 4096, 'float8', 2),
    (1, 8, 512, 'float8', 2),
    (4, 1, 100, 'compute', 4),
    (2, 4, 8, 'compute', 4),
    (4, 2, 3, 'float8', 2),  # No room for as many rows as there are tokens.
  )
  def test_formula_equals_the_programs(self, nodes, ranks, tokens, dtype, size):
    model, compute = presets.v3_671b(), ComputeConfig(dispatch_dtype=dtype)
    sizes = {'expert_node': nodes, 'expert': ranks}
    expected = {
      level.axis: exchange_levels.bytes_sent(
        level, model.embed_dim, model.experts_per_token, size
      )
      for level in exchange_levels.levels(model, compute, sizes, tokens)
    }
    layout = Layout(**sizes, dispatch_dtype=dtype)
    found = traffic.sent_by_program(model, layout, tokens, size)
    self.assertEqual(found, expected)

  # The dry run's own tests compare a program with the same formula.
  @pytest.mark.slow
  def test_formula_equals_the_bytes_of_the_partitioned_program(self):
    # Four devices, two levels, two layers of experts and an MTP module's.
    found = run_script('planning/exchanged_bytes.py', 4)
    self.assertEqual(found['formula'], found['read'])
    self.assertEqual(list(found['read']), ['expert_node', 'expert'])

  def test_all_again_is_a_dispatch_and_a_combine_more(self):
    v3, layout = presets.v3_671b(), Layout(expert=8)
    once, again = (
      traffic.sent_by_program(v3, layout, 4096, again=value)['expert']
      for value in (False, True)
    )
    self.assertAlmostEqual(again / once, 7 / 5)

  def test_padding_and_sending_again_cost_what_they_cost(self):
    v3, layout = presets.v3_671b(), Layout(expert_node=8, expert=8)
    sent = traffic.Bytes()
    for once in traffic.exchange_per_token(v3, layout, fp8=False):
      sent += once * (2 * 4096)  # forward and backward
    least = {'expert_node': sent.network, 'expert': sent.link}
    padded = traffic.sent_by_program(v3, layout, 4096)
    # Slack times five crossings instead of four, and the scalars.
    self.assertBetween(padded['expert'] / least['expert'], 1.25 * 1.25, 1.57)
    # And room for M copies, where fewer are needed on average.
    reach = 4 / traffic.mean_nodes_per_token(v3, 8)
    factor = padded['expert_node'] / least['expert_node']
    self.assertBetween(factor, 1.5625 * reach, 1.58 * reach)


if __name__ == '__main__':
  absltest.main()
