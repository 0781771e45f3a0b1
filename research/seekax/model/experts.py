"""The mixture-of-experts FFN: routed experts and the shared one.

Letters: B batch, L positions, T tokens, D model width, F expert width,
E experts.
"""

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from seekax.config import ModelConfig
from seekax.model.layers import stored_matrix, SwiGlu
from seekax.model.router import Router, sequence_balance
from seekax.ops.grouped_matmul import grouped_swiglu
from seekax.ops.precision import HIGH, Policy


@struct.dataclass
class Load:
  """What the router did to this batch.

  Attributes:
    count_E: int32, choices of every expert.
    balance: float32 scalar, sum over sequences of the balance loss.
  """

  count_E: jax.Array
  balance: jax.Array


class Experts(nn.Module):
  """Routed experts plus the shared expert, which no gate scales."""

  config: ModelConfig
  policy: Policy = HIGH

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, bias_E: jax.Array
  ) -> tuple[jax.Array, Load]:
    config = self.config
    batch, length, width = x_BLD.shape
    count, hidden = config.num_experts, config.expert_dim
    x_TD = x_BLD.reshape(batch * length, width)
    routing = Router(config, name='router')(x_TD, bias_E)
    into = (count, width, hidden), ('experts', 'embed', 'mlp')
    out_of = (count, hidden, width), ('experts', 'mlp', 'embed')
    y_TD = grouped_swiglu(
      x_TD,
      routing.gates_TA,
      routing.experts_TA,
      stored_matrix(self, 'gate', *into, config),
      stored_matrix(self, 'up', *into, config),
      stored_matrix(self, 'down', *out_of, config),
      backend=config.grouped_matmul,
      products=self.policy.routed,
    )
    if config.num_shared_experts:
      shared = SwiGlu(config, config.shared_dim, self.policy.ffn, name='shared')
      shared_TD = shared(x_TD)
      y_TD += shared_TD.astype(jnp.float32)
    scores_BLE = routing.scores_TE.reshape(batch, length, count)
    load = Load(
      count_E=jnp.bincount(routing.experts_TA.reshape(-1), length=count),
      balance=sequence_balance(scores_BLE, config.experts_per_token),
    )
    # Added up in float32, cast once.
    return y_TD.astype(x_BLD.dtype).reshape(batch, length, width), load
