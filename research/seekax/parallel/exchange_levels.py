"""The levels of an exchange of tokens: who holds which experts, what is sent.

Letters: as in `exchange`.
"""

import dataclasses
import math

from seekax.configuration.compute import ComputeConfig
from seekax.configuration.model import ModelConfig
from seekax.ops import block_fp8

# V3's tiles of activations, with scales that are powers of two (section 3.3.2),
# so that the experts' products can quantise them again without change.
DISPATCH = block_fp8.Tiling(
  1, 128, power_of_two=True, floor=block_fp8.ACTIVATION_FLOOR
)
_ROW_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Level:
  """One mesh axis over whose ranks experts are spread.

  Attributes:
    axis: name of the mesh axis.
    ranks: number of ranks on it.
    inner: experts per rank of this axis over experts per device.
    once: whether a token goes to a rank once for all its choices there, or once
      per choice.
    rows: number of rows of room for each rank in a round (C).
    float8: whether tokens are sent as E4M3.
    ragged: whether only the rows that exist are sent.
  """

  axis: str
  ranks: int
  inner: int
  once: bool
  rows: int
  float8: bool
  ragged: bool = False


def levels(
  model: ModelConfig,
  compute: ComputeConfig,
  sizes: dict[str, int],
  tokens: int,
) -> tuple[Level, ...]:
  """Returns the levels of a mesh, nodes first.

  Args:
    model: gives the router's limits.
    compute: says how the exchange is done.
    sizes: size of each mesh axis; 1 where it is left out.
    tokens: number of tokens on one device.
  """
  nodes, ranks = sizes.get('expert_node', 1), sizes.get('expert', 1)
  choices = model.experts_per_token
  how = compute.dispatch_dtype == 'float8', compute.exchange == 'ragged'

  def rows(copies: float, most: int) -> int:
    wanted = math.ceil(copies * compute.exchange_slack / _ROW_MULTIPLE)
    return min(wanted * _ROW_MULTIPLE, most)

  found, held = [], tokens
  if nodes > 1:
    # A token goes to no more nodes than groups are kept: none crosses a node.
    copies = min(nodes, model.num_kept_groups, choices)
    room = rows(tokens * copies / nodes, tokens)
    found.append(Level('expert_node', nodes, ranks, True, room, *how))
    held = nodes * room
  if ranks > 1:
    room = rows(tokens * choices / ranks, held * choices)
    found.append(Level('expert', ranks, 1, False, room, *how))
  return tuple(found)


def bytes_sent(level: Level, width: int, choices: int, itemsize: int) -> float:
  """Bytes that a device sends over a level per layer, in one round each way.

  Forward, tokens, gates and ids are sent, and outputs return. Backward, the
  same three and the outputs' gradients are sent, and the gradients of tokens
  and gates return.

  Args:
    level: a level of the mesh.
    width: width of a token.
    choices: number of experts per token.
    itemsize: bytes per value of the compute dtype.
  """
  scalars = 4 * (choices if level.once else 1)
  token = width * itemsize
  sent = (
    width + 4 * math.ceil(width / DISPATCH.columns) if level.float8 else token
  )
  row = 2 * sent + 3 * token + 5 * scalars
  return level.ranks * level.rows * row * (level.ranks - 1) / level.ranks
