"""Multi-token prediction (DeepSeek-V3, section 2.2).

Letters: B batch, L positions, D model width, E experts.
"""

from flax import linen as nn
import jax.numpy as jnp

from seekax.configuration.compute import ComputeConfig, DEFAULT
from seekax.configuration.model import ModelConfig
from seekax.model.layers import matrix, RmsNorm
from seekax.model.stack import block_class
from seekax.ops.linear import linear
from seekax.ops.precision import HIGH, Policy
from seekax.parallel.rules import constrain


class MtpModule(nn.Module):
  """One multi-token prediction module, with the trunk's embedding and head."""

  config: ModelConfig
  policy: Policy = HIGH
  compute: ComputeConfig = DEFAULT

  def setup(self):
    config = self.config
    width, eps = config.embed_dim, config.norm_eps
    self.embed_norm = RmsNorm(width, 'embed', eps)
    self.hidden_norm = RmsNorm(width, 'embed', eps)
    self.project = matrix(
      self, 'project', (2 * width, width), ('mlp', 'embed'), config
    )
    self.block = block_class(self.compute)(
      config, config.uses_experts, self.policy, self.compute
    )
    self.final_norm = RmsNorm(width, 'embed', eps)

  def __call__(self, hidden_BLD, embedded_BLD, bias_E, positions, segments):
    """Maps a depth's hidden states to the next depth's, and the load.

    Args:
      hidden_BLD: hidden states of the previous depth, after the norm.
      embedded_BLD: embedding of the next token at each position.
      bias_E: selection bias of this module's router.
      positions: [B, L], positions of hidden_BLD, not of the next token.
      segments: [B, L] document numbers, or None.

    References:
      DeepSeek-V3, equations 21 to 23; the released weights take the embedding
      first and the hidden state second, against the report's order.
    """
    enter = MtpModule._enter
    if self.compute.remat != 'none':
      enter = nn.remat(enter)
    # Equation 21.
    x_BLD = enter(self, hidden_BLD, embedded_BLD)
    # Equation 22.
    x_BLD, (load, _) = self.block(x_BLD, bias_E, positions, segments)
    # Equation 23 is the trunk's head, on this.
    return self.final_norm(x_BLD), load

  def _enter(self, hidden_BLD, embedded_BLD):
    """Applies both norms and the projection; the norms can be recomputed."""
    pair = [self.embed_norm(embedded_BLD), self.hidden_norm(hidden_BLD)]
    # Not split over `tensor`: the compiler would permute parts of the halves
    # between its ranks, which no pipeline stage may do (`stages_differ`).
    x_BLD = constrain(jnp.concatenate(pair, axis=-1), 'batch', 'length', None)
    return linear(x_BLD, self.project)
