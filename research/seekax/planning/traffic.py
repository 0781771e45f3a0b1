"""Bytes that cross links: experts, data, pipeline, tensor and context ranks.

`network` counts what leaves a node (InfiniBand, RoCE), `link` what stays in it
(NVLink), both per device and in one direction.
"""

import dataclasses
import math

from seekax.config import ModelConfig
from seekax.planning.layout import Layout

# Bytes of a value: bfloat16; FP8 with a float32 scale per tile of 128.
BFLOAT16 = 2.0
FP8 = 1.0 + 4.0 / 128


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Sent by a device, by the kind of link."""

  network: float = 0.0
  link: float = 0.0

  def __add__(self, other: 'Bytes') -> 'Bytes':
    return Bytes(self.network + other.network, self.link + other.link)

  def __mul__(self, factor: float) -> 'Bytes':
    return Bytes(self.network * factor, self.link * factor)


def most_nodes_per_token(model: ModelConfig, nodes: int) -> int:
  """Nodes that a token's experts may lie on: M of V3 (section 2.1.2)."""
  groups, kept = model.num_expert_groups, model.num_kept_groups
  if groups % nodes == 0:  # Whole groups on a node.
    reach = min(kept, nodes)
  elif nodes % groups == 0:  # Several nodes to a group.
    reach = kept * (nodes // groups)
  else:
    reach = nodes
  return min(reach, nodes, model.experts_per_token)


def mean_nodes_per_token(model: ModelConfig, nodes: int) -> float:
  """Nodes that a token's experts lie on, were all choices equally likely.

  Chosen are K of the experts on as many nodes as node limiting leaves; a node
  is missed by C(all but its own, K) of C(all, K) choices.
  """
  if nodes == 1:
    return 1.0
  groups, kept = model.num_expert_groups, model.num_kept_groups
  chosen = model.experts_per_token
  limited = kept < groups and nodes % groups == 0
  reach = kept * (nodes // groups) if limited else nodes
  per_node = model.num_experts // nodes
  pool = per_node * reach
  missed = math.comb(pool - per_node, chosen) / math.comb(pool, chosen)
  return min(reach * (1 - missed), float(most_nodes_per_token(model, nodes)))


def exchange_per_token(
  model: ModelConfig, layout: Layout, fp8: bool
) -> tuple[Bytes, Bytes]:
  """Dispatch and combine of one token in one layer, forward.

  Two levels: a token crosses to each other node at most once, and is handed on
  within the node to each of its experts (DeepSeek-V3, section 3.2.2). The
  backward pass sends as much again.

  Args:
    model: with experts.
    layout: where they lie.
    fp8: whether dispatch is in FP8; combine is in bfloat16.

  Returns:
    (dispatch, combine), per token of the sending device.
  """
  nodes, per_node = layout.expert_node, layout.expert
  copies = mean_nodes_per_token(model, nodes) * (nodes - 1) / nodes
  handed = model.experts_per_token * (per_node - 1) / per_node
  crossing = Bytes(copies * model.embed_dim, handed * model.embed_dim)
  return crossing * (FP8 if fp8 else BFLOAT16), crossing * BFLOAT16


def most_network_bytes_per_token(
  model: ModelConfig, layout: Layout, bytes_per_value: float
) -> float:
  """The bound of `exchange_per_token`'s crossing: M copies, none at home."""
  nodes = most_nodes_per_token(model, layout.expert_node)
  return nodes * model.embed_dim * bytes_per_value


def pipeline_per_token(model: ModelConfig, layout: Layout) -> Bytes:
  """Forward sends of one token past one stage; over the network."""
  if layout.pipeline == 1:
    return Bytes()
  return Bytes(network=layout.virtual_stages * model.embed_dim * BFLOAT16)


def tensor_per_token(model: ModelConfig, layout: Layout) -> Bytes:
  """Forward gathers and scatters of one token in one layer, over the links.

  A gather before and a scatter after attention, and again round a dense FFN
  (sequence parallel, arXiv 2205.05198); experts are counted in the exchange.
  """
  share = (layout.tensor - 1) / layout.tensor
  pairs = 1 if model.uses_experts else 2
  return Bytes(link=2 * pairs * share * model.embed_dim * BFLOAT16)


def context_per_token(
  model: ModelConfig, sequence_length: int, positions_here: int
) -> Bytes:
  """Forward gather of all other positions' latents (or keys and values).

  Args:
    model: the architecture.
    sequence_length: positions of a sequence.
    positions_here: those on this device.

  Returns:
    Bytes received in one layer, per position on this device.
  """
  if model.attention == 'mla':
    width = model.kv_latent_dim + model.rope_head_dim
  else:
    width = model.kv_heads * (model.qk_head_dim + model.value_head_dim)
  others = (sequence_length - positions_here) / positions_here
  return Bytes(network=others * width * BFLOAT16)


def data_parallel_per_step(
  plain_parameters: float, expert_parameters: float, layout: Layout
) -> Bytes:
  """Reduced gradients and gathered parameters of a step, in bfloat16.

  Args:
    plain_parameters: on this device, that all data ranks share.
    expert_parameters: on this device, that only data and fsdp ranks share.
    layout: the ranks.

  Returns:
    Bytes sent per device: (n - 1) / n of each, both ways.
  """

  def crossing(parameters: float, ranks: int) -> float:
    return 2 * parameters * BFLOAT16 * (ranks - 1) / ranks

  return Bytes(
    network=crossing(plain_parameters, layout.data_ranks)
    + crossing(expert_parameters, layout.data * layout.fsdp)
  )


def fsdp_per_pass(parameters: float, layout: Layout) -> Bytes:
  """One gather of the parameters that fsdp ranks share, in bfloat16.

  Args:
    parameters: of this device's stage, once gathered.
    layout: the ranks.
  """
  share = (layout.fsdp - 1) / layout.fsdp
  return Bytes(network=parameters * BFLOAT16 * share)
