"""The router: affinities, choice of experts, gates, sequence-wise balance.

Letters: B batch, L positions, T tokens, D model width, E experts, G groups,
A experts per token.
"""

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from seekax.configuration.model import ModelConfig
from seekax.model.layers import matrix
from seekax.ops.rematerialisation import keep
from seekax.parallel.rules import total


@struct.dataclass
class Routing:
  """The experts that each token goes to.

  Attributes:
    experts_TA: int32, chosen experts.
    gates_TA: float32, weight of each choice.
    scores_TE: float32, affinities without bias.
  """

  experts_TA: jax.Array
  gates_TA: jax.Array
  scores_TE: jax.Array


def route(
  logits_TE: jax.Array, bias_E: jax.Array, config: ModelConfig
) -> Routing:
  """Chooses experts and their gates from router logits.

  The bias only affects the choice; the gates come from the plain affinities,
  and gradients flow only through these.

  Args:
    logits_TE: router logits; converted to float32.
    bias_E: float32 selection bias.
    config: gives the kind of router, groups, number of choices and scale.

  Returns:
    The routing of every token.

  References:
    DeepSeek-V3, equations 12 to 16; DeepSeek-V2, equations 20 to 24.
  """
  logits_TE = keep(logits_TE.astype(jnp.float32), 'router_logits')
  if config.router == 'sigmoid':
    scores_TE = jax.nn.sigmoid(logits_TE)  # Equation 15.
  else:
    scores_TE = jax.nn.softmax(logits_TE, axis=-1)
  # Equation 16: the bias moves the choice, not the gates.
  choice_TE = jax.lax.stop_gradient(scores_TE) + bias_E
  choice_TE = keep_best_groups(choice_TE, config)
  experts_TA = jax.lax.top_k(choice_TE, config.experts_per_token)[1]
  experts_TA = keep(experts_TA, 'router_choice')
  # Equation 14.
  gates_TA = jnp.take_along_axis(scores_TE, experts_TA, axis=1)
  if config.normalize_gates:  # Equation 13.
    gates_TA = gates_TA / (gates_TA.sum(axis=1, keepdims=True) + 1e-20)
  # V3 normalises, then scales; V2 does one or the other.
  if config.router == 'sigmoid' or not config.normalize_gates:
    gates_TA = gates_TA * config.routed_scale
  return Routing(experts_TA, gates_TA, scores_TE)


def keep_best_groups(choice_TE: jax.Array, config: ModelConfig) -> jax.Array:
  """Sets affinities outside a token's best groups to minus infinity.

  References:
    DeepSeek-V3, section 2.1.2, node-limited routing: a group's score is the sum
    of its best affinities. The released weights take the best two.
  """
  groups = config.num_expert_groups
  if config.num_kept_groups == groups:
    return choice_TE
  choice_TGI = choice_TE.reshape(choice_TE.shape[0], groups, -1)
  if config.group_score == 'top2':
    group_TG = _best_two(choice_TGI)
  else:
    group_TG = choice_TGI.max(axis=-1)
  kept = jax.lax.top_k(group_TG, config.num_kept_groups)[1]
  kept_TG = jax.nn.one_hot(kept, groups, dtype=jnp.bool_).any(axis=1)
  return jnp.where(kept_TG[..., None], choice_TGI, -jnp.inf).reshape(
    choice_TE.shape
  )


def _best_two(x_TGI: jax.Array) -> jax.Array:
  """Sum of the two largest on the last axis; faster than a top_k of two."""
  first_TG = second_TG = jnp.full(x_TGI.shape[:-1], -jnp.inf)
  for i in range(x_TGI.shape[-1]):
    x_TG = x_TGI[..., i]
    second_TG = jnp.maximum(second_TG, jnp.minimum(first_TG, x_TG))
    first_TG = jnp.maximum(first_TG, x_TG)
  return first_TG + second_TG


def sequence_balance(
  scores_BLE: jax.Array, experts_per_token: int, total_length: int = 0
):
  """Sequence-wise balance loss, before its weight alpha.

  For each sequence it is the sum over experts of f * p: f is the share of
  tokens whose best affinities, without bias and groups, include the expert,
  times E / A; p is the mean normalised affinity. At perfect balance it is 1.

  Args:
    scores_BLE: affinities.
    experts_per_token: A.
    total_length: number of positions of a whole sequence, if these are only a
      part of it on a mesh.

  Returns:
    float32 scalar, the sum over sequences; on a mesh, over this device's
    sequences, and equal on all devices that share them.

  References:
    DeepSeek-V3, equations 17 to 20.
  """
  batch, length, num_experts = scores_BLE.shape
  best_BLA = jax.lax.top_k(
    jax.lax.stop_gradient(scores_BLE), experts_per_token
  )[1]
  rows_B = jnp.arange(batch)[:, None, None]
  count_BE = jnp.zeros((batch, num_experts)).at[rows_B, best_BLA].add(1.0)
  count_BE = keep(total(count_BE, 'length'), 'balance_count')
  total_length = total_length or length
  # Equation 18.
  f_BE = count_BE * num_experts / (experts_per_token * total_length)
  # Equation 19.
  p_BLE = scores_BLE / scores_BLE.sum(axis=-1, keepdims=True)
  # Equation 20.
  p_BE = total(p_BLE.sum(axis=1), 'length') / total_length
  # Equation 17.
  return jnp.sum(f_BE * p_BE)


class Router(nn.Module):
  """Declares the router's matrix."""

  config: ModelConfig

  def setup(self):
    config = self.config
    shape = (config.embed_dim, config.num_experts)
    self.kernel = matrix(self, 'kernel', shape, ('embed', 'choices'), config)

  def __call__(self, x_TD: jax.Array, bias_E: jax.Array) -> Routing:
    return route(affinity_logits(x_TD, self.kernel), bias_E, self.config)


def affinity_logits(x_TD: jax.Array, kernel_DE: jax.Array) -> jax.Array:
  """Router logits [T, E], float32 for any compute dtype."""
  return jnp.einsum(
    'TD,DE->TE',
    x_TD.astype(jnp.float32),
    kernel_DE.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
