"""One layer.

Letters: B batch, L positions, D model width, E experts.
"""

from flax import linen as nn
import jax.numpy as jnp

from seekax.configuration.compute import ComputeConfig, DEFAULT
from seekax.configuration.model import ModelConfig
from seekax.model.attention import attention_module
from seekax.model.experts import Experts
from seekax.model.layers import RmsNorm, SwiGlu
from seekax.ops.precision import HIGH, Policy
from seekax.ops.rematerialisation import keep
from seekax.parallel.rules import constrain


class Block(nn.Module):
  """One pre-norm layer: attention, then a dense or mixture-of-experts FFN."""

  config: ModelConfig
  use_experts: bool
  policy: Policy = HIGH
  compute: ComputeConfig = DEFAULT

  def setup(self):
    config = self.config
    self.attention_norm = RmsNorm(config.embed_dim, 'embed', config.norm_eps)
    self.attention = attention_module(config, self.policy, self.compute)
    self.ffn_norm = RmsNorm(config.embed_dim, 'embed', config.norm_eps)
    if self.use_experts:
      self.experts = Experts(config, self.policy, self.compute)
    else:
      self.mlp = SwiGlu(config, config.mlp_dim, self.policy.ffn)

  def _ffn(self, x_BLD, y_BLD, bias_E):
    """Adds attention's output, then the FFN's; the norm reads the exact sum."""
    dtype = x_BLD.dtype
    y_BLD = keep(y_BLD, 'attention_projected')
    sum_BLD = x_BLD.astype(jnp.float32) + y_BLD.astype(jnp.float32)
    normed_BLD = self.ffn_norm(sum_BLD).astype(dtype)
    x_BLD = sum_BLD.astype(dtype)
    if self.use_experts:
      y_BLD, load = self.experts(normed_BLD, bias_E)
      return x_BLD + y_BLD, load
    return x_BLD + self.mlp(normed_BLD), None

  def __call__(self, x_BLD, bias_E, positions_BL, segments_BL):
    """Runs whole sequences; returns (x, (load, what the cache keeps))."""
    y_BLD, entry = self.attention(
      self.attention_norm(x_BLD), positions_BL, segments_BL
    )
    x_BLD, load = self._ffn(x_BLD, y_BLD, bias_E)
    return constrain(x_BLD, 'batch', 'length', 'embed'), (load, entry)

  def decode(self, x_BD, bias_E, entry, lengths_B):
    """Runs one new token per request; returns (x, the updated cache)."""
    y_BD, entry = self.attention.decode(
      self.attention_norm(x_BD), lengths_B, entry
    )
    x_BLD, _ = self._ffn(x_BD[:, None], y_BD[:, None], bias_E)
    return x_BLD[:, 0], entry
