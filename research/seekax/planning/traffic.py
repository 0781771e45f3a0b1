"""Bytes that cross links: experts, data, pipeline, tensor and context ranks.

`network` counts what leaves the devices that fast links join (InfiniBand,
RoCE), `link` what stays among them (NVLink), both per device and in one
direction. layout.py says which of the two an axis takes, from the order of axes
and the size of the device's domain.

All functions but the last count what has to travel: no padding, and nothing
sent again. `sent_by_program` counts what this program's exchange sends.
"""

import dataclasses
import math

from seekax.configuration.fp8 import FP8_TILE
from seekax.configuration.model import ModelConfig
from seekax.planning.hardware import BFLOAT16, FLOAT32, FP8
from seekax.planning.layout import Layout

# Devices that fast links join, unless the caller says otherwise.
_NODE = 8


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Bytes that a device sends, by kind of link."""

  network: float = 0.0
  link: float = 0.0

  def __add__(self, other: 'Bytes') -> 'Bytes':
    return Bytes(self.network + other.network, self.link + other.link)

  def __mul__(self, factor: float) -> 'Bytes':
    return Bytes(self.network * factor, self.link * factor)


def over(axis: str, layout: Layout, sent: float, domain: int = _NODE) -> Bytes:
  """Bytes that ranks of an axis send, on the kind of link that joins them."""
  if layout.within(axis, domain):
    return Bytes(link=sent)
  return Bytes(network=sent)


def most_nodes_per_token(model: ModelConfig, nodes: int) -> int:
  """The most nodes that a token's experts lie on: M of V3 (section 2.1.2)."""
  groups, kept = model.num_expert_groups, model.num_kept_groups
  if groups % nodes == 0:  # Whole groups on a node.
    reach = min(kept, nodes)
  elif nodes % groups == 0:  # Several nodes to a group.
    reach = kept * (nodes // groups)
  else:
    reach = nodes
  return min(reach, nodes, model.experts_per_token)


def mean_nodes_per_token(model: ModelConfig, nodes: int) -> float:
  """Nodes that a token's experts lie on, if all choices are equally likely.

  A token chooses K of the experts on as many nodes as node limiting leaves; a
  node is missed by C(all but its own, K) of C(all, K) choices.
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
  model: ModelConfig, layout: Layout, fp8: bool, domain: int = _NODE
) -> tuple[Bytes, Bytes]:
  """Dispatch and combine of one token in one layer, forward.

  Two levels: a token crosses to each other node at most once, and is handed on
  within the node to each of its experts (DeepSeek-V3, section 3.2.2). The
  backward pass sends as much again.

  Args:
    model: a model with experts.
    layout: where the experts lie.
    fp8: whether dispatch is in FP8; combine is in bfloat16.
    domain: devices that fast links join.

  Returns:
    (dispatch, combine), per token that a device sends: it sends all tokens that
    it computes, or with `whole_experts` its share among tensor ranks.
  """
  copies, handed = _crossings(model, layout)
  crossing = over(
    'expert_node', layout, copies * model.embed_dim, domain
  ) + Bytes(link=handed * model.embed_dim)
  return crossing * (FP8 if fp8 else BFLOAT16), crossing * BFLOAT16


def _crossings(model: ModelConfig, layout: Layout) -> tuple[float, float]:
  """How often a token goes to another node, and to another device of a node."""
  nodes, per_node = layout.expert_node, layout.experts_per_node
  copies = mean_nodes_per_token(model, nodes) * (nodes - 1) / nodes
  return copies, model.experts_per_token * (per_node - 1) / per_node


def senders_per_token(layout: Layout) -> int:
  """Tensor ranks that send the same token to its experts."""
  return 1 if layout.whole_experts else layout.tensor


def pipeline_per_token(
  model: ModelConfig, layout: Layout, domain: int = _NODE
) -> Bytes:
  """Forward sends of one token from one rank of the pipeline to the next."""
  if layout.pipeline == 1:
    return Bytes()
  sent = layout.virtual_stages * model.embed_dim * BFLOAT16
  return over('pipeline', layout, sent, domain)


def tensor_per_token(model: ModelConfig, layout: Layout) -> Bytes:
  """Forward gathers and scatters of one token in one layer, over the links.

  A gather comes before attention and a scatter after it, and again around the
  FFN (sequence parallel, arXiv 2205.05198; an all-reduce sends as much as
  both). Whole experts need none: the exchange counts their tokens.
  """
  share = (layout.tensor - 1) / layout.tensor
  pairs = 1 if model.uses_experts and layout.whole_experts else 2
  return Bytes(link=2 * pairs * share * model.embed_dim * BFLOAT16)


def context_per_token(
  model: ModelConfig,
  sequence_length: int,
  positions_here: float,
  layout: Layout,
  domain: int = _NODE,
) -> Bytes:
  """Forward gather of all other positions' latents (or keys and values).

  Args:
    model: the architecture.
    sequence_length: positions of a sequence.
    positions_here: positions on this device.
    layout: the ranks. If its context ranks would leave more positions to a
      device than are here, data ranks share the sequence, over the network.
    domain: devices that fast links join.

  Returns:
    Bytes received in one layer, per position on this device.
  """
  if model.attention == 'mla':
    width = model.kv_latent_dim + model.rope_head_dim
  else:
    width = model.kv_heads * (model.qk_head_dim + model.value_head_dim)
  others = (sequence_length - positions_here) / positions_here
  sent = others * width * BFLOAT16
  if positions_here * layout.context < sequence_length:
    return Bytes(network=sent)
  return over('context', layout, sent, domain)


def data_parallel_per_step(
  plain_parameters: float,
  expert_parameters: float,
  layout: Layout,
  domain: int = _NODE,
  gradient: float = FLOAT32,
) -> Bytes:
  """What ranks that hold the same parameters send once per step.

  Gradients are scattered in float32, and weights gathered in bfloat16, over all
  ranks of the batch but fsdp's. Those do it for every micro-batch
  (`fsdp_per_micro_batch`), so that only their part of the parameters is left
  for the other ranks.

  Args:
    plain_parameters: parameters of this device's stages that all data ranks
      share.
    expert_parameters: parameters of this device's stages that data and fsdp
      ranks share.
    layout: the ranks.
    domain: devices that fast links join.
    gradient: bytes of a gradient on its way.

  Returns:
    Bytes sent per device: (n - 1) / n of each, both ways.
  """

  def crossing(parameters: float, ranks: int) -> float:
    part = parameters / layout.fsdp
    return part * (gradient + BFLOAT16) * (ranks - 1) / ranks

  shared = layout.data_ranks // layout.fsdp * layout.context
  sent = crossing(plain_parameters, shared)
  sent += crossing(expert_parameters, layout.data * layout.context)
  return over('data', layout, sent, domain)


def fsdp_per_micro_batch(
  parameters: float,
  layout: Layout,
  domain: int = _NODE,
  gradient: float = FLOAT32,
) -> tuple[Bytes, Bytes]:
  """What fsdp ranks send for a micro-batch, forward and backward.

  Weights are gathered in bfloat16 where they are used, in both passes, and
  gradients scattered in float32 where they are made.

  Args:
    parameters: parameters of this device's stage, once gathered.
    layout: the ranks.
    domain: devices that fast links join.
    gradient: bytes of a gradient on its way.

  Returns:
    (forward, backward), as bytes that a device sends.
  """
  share = parameters * (layout.fsdp - 1) / layout.fsdp
  return (
    over('fsdp', layout, share * BFLOAT16, domain),
    over('fsdp', layout, share * (BFLOAT16 + gradient), domain),
  )


# --- What this program's exchange sends (parallel/exchange.py). ---------------

_ROW_MULTIPLE = 8
# How often a token's row passes. Forward it goes to the experts and back;
# backward it goes to them once more (the exchange keeps nothing), beside its
# output's gradient, and the token's gradient comes back.
_TO_EXPERTS, _OTHER_ROWS = 2, 3
# Gates go there, there again, and come back as gradients; ids go there, and
# there again. Both take 4 bytes.
_SCALARS = 5


def sent_by_program(
  model: ModelConfig,
  layout: Layout,
  tokens: int,
  itemsize: float = BFLOAT16,
  again: bool = False,
) -> dict[str, float]:
  """Bytes that a device sends in a layer of experts, forward and backward.

  The program sends room for `layout.exchange_slack` times balanced loads, in
  multiples of 8 rows, whether tokens fill it or not; one round each way.

  Args:
    model: the router's limits, and how the exchange is done.
    layout: where experts lie.
    tokens: tokens that a device computes at once.
    itemsize: bytes of a value of the compute dtype.
    again: whether the forward pass is done twice, as remat=full does.

  Returns:
    Bytes by axis, the outer axis first; an axis of one rank is left out.
  """
  width, choices = model.embed_dim, model.experts_per_token
  row = width * itemsize
  there = row
  if layout.dispatch_dtype == 'float8':
    there = width + FLOAT32 * math.ceil(width / FP8_TILE)

  def room(balanced: float, most: int) -> int:
    rows = math.ceil(balanced * layout.exchange_slack / _ROW_MULTIPLE)
    return min(rows * _ROW_MULTIPLE, most)

  def sent(ranks: int, rows: int, scalars: int) -> float:
    passed = (_TO_EXPERTS + again) * there + (_OTHER_ROWS + again) * row
    passed += (_SCALARS + 2 * again) * FLOAT32 * scalars
    return (ranks - 1) * rows * passed

  found, held = {}, tokens
  if layout.expert_node > 1:
    nodes = layout.expert_node
    copies = min(nodes, model.num_kept_groups, choices)
    rows = room(tokens * copies / nodes, tokens)
    found['expert_node'] = sent(nodes, rows, choices)
    held = nodes * rows
  if layout.expert > 1:
    rows = room(tokens * choices / layout.expert, held * choices)
    found['expert'] = sent(layout.expert, rows, 1)
  return found
