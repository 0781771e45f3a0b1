"""The mixture-of-experts FFN: routed experts and the shared one.

Letters: B batch, L positions, T tokens, D model width, F expert width,
E experts.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from seekax.configuration.compute import ComputeConfig, DEFAULT
from seekax.configuration.model import ModelConfig
from seekax.model import router
from seekax.model.layers import stored_matrix, SwiGlu
from seekax.ops.grouped_matmul import grouped_swiglu
from seekax.ops.precision import HIGH, Policy
from seekax.parallel import exchange, rules


@struct.dataclass
class Load:
  """How a router distributed a batch over the experts.

  Attributes:
    count_E: int32, number of choices of each expert.
    balance: float32 scalar, sum over sequences of the balance loss.
    rounds: int32, number of rounds of the exchange between devices, 1 without
      an exchange; summed over the ranks of the batch.
    exchanges: int32, number of exchanges, summed likewise.
  """

  count_E: jax.Array
  balance: jax.Array
  rounds: jax.Array
  exchanges: jax.Array


def no_load(config: ModelConfig, routers: int) -> Load:
  """The load of this many routers, stacked, before any token."""
  count, number = (
    jnp.zeros(routers, dtype) for dtype in (jnp.int32, jnp.float32)
  )
  return Load(
    count_E=jnp.zeros((routers, config.num_experts), jnp.int32),
    balance=number,
    rounds=count,
    exchanges=count,
  )


class Experts(nn.Module):
  """Routed experts plus the shared expert, which has no gate.

  References:
    DeepSeek-V3, equation 12, without the residual sum.
  """

  config: ModelConfig
  policy: Policy = HIGH
  compute: ComputeConfig = DEFAULT

  def setup(self):
    config = self.config
    count = config.num_experts // rules.parts_apart('experts')
    width, hidden = config.embed_dim, config.expert_dim
    into = (count, width, hidden), ('experts', 'embed', 'mlp'), config
    out_of = (count, hidden, width), ('experts', 'mlp', 'embed'), config
    self.gate = stored_matrix(self, 'gate', *into)
    self.up = stored_matrix(self, 'up', *into)
    self.down = stored_matrix(self, 'down', *out_of)
    self.router = router.Router(config)
    if config.num_shared_experts:
      self.shared = SwiGlu(config, config.shared_dim, self.policy.ffn)

  def __call__(
    self, x_BLD: jax.Array, bias_E: jax.Array
  ) -> tuple[jax.Array, Load]:
    weights = self.gate, self.up, self.down
    run = functools.partial(
      routed_experts, self.config, self.compute, self.policy, x_BLD.shape[1]
    )
    y_BLD, load = lay_out(run)(x_BLD, bias_E, self.router.kernel, weights)
    if self.config.num_shared_experts:
      y_BLD += self.shared(x_BLD).astype(jnp.float32)
    # The sum is float32 and is cast once.
    return y_BLD.astype(x_BLD.dtype), load


def lay_out(run: Callable[..., Any]) -> Callable[..., Any]:
  """On a mesh, `run` on each device's own tokens and experts; else `run`.

  Choice, sort, products and their sum belong in there: the compiler can't split
  a sort, and would gather all tokens on every device.
  """
  tokens = rules.axes('batch', 'length', None)
  own_into = rules.axes('experts', None, 'mlp')
  own_out_of = rules.axes('experts', 'mlp', None)
  return rules.per_shard(
    run,
    inputs=(
      tokens,
      rules.axes(None),
      rules.axes(None, None),
      (own_into, own_into, own_out_of),
    ),
    # pyrefly: ignore[bad-argument-type]: a Load of names instead of arrays.
    outputs=(tokens, Load(rules.axes(None), *(3 * [rules.axes()]))),
  )


def routed_experts(
  config: ModelConfig,
  compute: ComputeConfig,
  policy: Policy,
  total_length: int,
  x_BLD: jax.Array,
  bias_E: jax.Array,
  kernel_DE: jax.Array,
  weights: tuple[Any, Any, Any],
) -> tuple[jax.Array, Load]:
  """The routed experts' output for these tokens.

  Args:
    config: gives the kind of router and its numbers.
    compute: names the backend of the grouped products.
    policy: says in which precision they multiply.
    total_length: number of positions of a whole sequence; on a mesh that splits
      sequences, x_BLD is a part of it.
    x_BLD: tokens; on a mesh, one device's.
    bias_E: float32 selection bias.
    kernel_DE: the router's matrix.
    weights: gate [E, D, F], up [E, D, F] and down [E, F, D]; on a mesh, one
      device's experts.

  Returns:
    float32 [B, L, D] and the load of the whole batch.
  """
  batch, length, width = x_BLD.shape
  x_TD = x_BLD.reshape(batch * length, width)
  # Equations 13 to 16.
  logits_TE = router.affinity_logits(x_TD, kernel_DE)
  routing = router.route(logits_TE, bias_E, config)

  def experts(x_TD, gates_TA, experts_TA, weights):
    """The sum over the chosen experts in equation 12."""
    return grouped_swiglu(
      x_TD,
      gates_TA,
      experts_TA,
      *weights,
      backend=compute.grouped_matmul,
      products=policy.routed,
    )

  y_TD, rounds = exchange.over_experts(
    experts,
    config,
    compute,
    x_TD,
    routing.gates_TA,
    routing.experts_TA,
    weights,
  )
  y_TD = rules.total(y_TD, 'mlp')
  load = _load(routing, (batch, length), rounds, config, total_length)
  return y_TD.reshape(batch, length, width), load


def _load(
  routing: router.Routing,
  shape_BL: tuple[int, int],
  rounds: jax.Array,
  config: ModelConfig,
  total_length: int,
) -> Load:
  """The load of the whole batch, which all devices share."""
  count_E = jnp.bincount(
    routing.experts_TA.reshape(-1), length=config.num_experts
  )
  scores_BLE = routing.scores_TE.reshape(*shape_BL, -1)
  balance = router.sequence_balance(
    scores_BLE, config.experts_per_token, total_length
  )
  return Load(
    count_E=rules.total(count_E, 'batch', 'length'),
    balance=rules.total(balance, 'batch'),
    rounds=rules.total(rounds, 'batch'),
    exchanges=rules.total(jnp.int32(1), 'batch'),
  )
