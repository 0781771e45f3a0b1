"""The mixture-of-experts FFN: routed experts and the shared one.

Letters: B batch, L positions, T tokens, D model width, F expert width,
E experts.
"""

import functools

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
  """Routed experts plus the shared expert, which has no gate."""

  config: ModelConfig
  policy: Policy = HIGH
  compute: ComputeConfig = DEFAULT

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, bias_E: jax.Array
  ) -> tuple[jax.Array, Load]:
    config = self.config
    count = config.num_experts // rules.parts_apart('experts')
    width, hidden = config.embed_dim, config.expert_dim
    into = (count, width, hidden), ('experts', 'embed', 'mlp')
    out_of = (count, hidden, width), ('experts', 'mlp', 'embed')
    weights = (
      stored_matrix(self, 'gate', *into, config),
      stored_matrix(self, 'up', *into, config),
      stored_matrix(self, 'down', *out_of, config),
    )
    tokens = rules.axes('batch', 'length', None)
    own_into = rules.axes('experts', None, 'mlp')
    own_out_of = rules.axes('experts', 'mlp', None)
    routed = rules.per_shard(
      functools.partial(
        _routed, config, self.compute, self.policy, x_BLD.shape[1]
      ),
      inputs=(
        tokens,
        rules.axes(None),
        rules.axes(None, None),
        (own_into, own_into, own_out_of),
      ),
      # pyrefly: ignore[bad-argument-type]: names stand for arrays.
      outputs=(tokens, Load(rules.axes(None), *(3 * [rules.axes()]))),
    )
    kernel_DE = router.Router(config, name='router').kernel
    y_BLD, load = routed(x_BLD, bias_E, kernel_DE, weights)
    if config.num_shared_experts:
      shared = SwiGlu(config, config.shared_dim, self.policy.ffn, name='shared')
      y_BLD += shared(x_BLD).astype(jnp.float32)
    # The sum is float32 and is cast once.
    return y_BLD.astype(x_BLD.dtype), load


def _routed(
  config, compute, policy, total_length, x_BLD, bias_E, kernel_DE, weights
):
  """Returns the routed experts' output for these tokens, float32, and the load.

  On a mesh, tokens and experts are those of one device; the load is that of the
  whole batch.
  """
  batch, length, width = x_BLD.shape
  x_TD = x_BLD.reshape(batch * length, width)
  logits_TE = router.affinity_logits(x_TD, kernel_DE)
  routing = router.route(logits_TE, bias_E, config)

  def experts(x_TD, gates_TA, experts_TA, weights):
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
  scores_BLE = routing.scores_TE.reshape(batch, length, -1)
  count_E = jnp.bincount(
    routing.experts_TA.reshape(-1), length=config.num_experts
  )
  balance = router.sequence_balance(
    scores_BLE, config.experts_per_token, total_length
  )
  load = Load(
    count_E=rules.total(count_E, 'batch', 'length'),
    balance=rules.total(balance, 'batch'),
    rounds=rules.total(rounds, 'batch'),
    exchanges=rules.total(jnp.int32(1), 'batch'),
  )
  y_TD = rules.total(y_TD, 'mlp')
  return y_TD.reshape(batch, length, width), load
