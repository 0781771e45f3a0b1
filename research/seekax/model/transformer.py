"""The model: embedding, dense layers, expert layers, final norm, head, MTP.

Letters: B batch, L positions, D model width, V vocabulary, N stacked layers,
E experts, J prediction depths.

The dense layers and the expert layers are two scans; their parameters and
caches are stacked on a leading axis N.
"""

from typing import Any, TYPE_CHECKING

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from seekax.arrays import Array, PyTree
from seekax.configuration.compute import ComputeConfig, DEFAULT
from seekax.configuration.model import ModelConfig
from seekax.model import stack
from seekax.model.experts import Load
from seekax.model.layers import Embedding, matrix, RmsNorm
from seekax.model.mtp import MtpModule
from seekax.ops.precision import HIGH, Policy
from seekax.parallel.rules import constrain

# Keys of the router bias and of the expert load.
LAYERS, MTP = 'layers', 'mtp'


@struct.dataclass
class Trunk:
  """The main model's results for a batch.

  Attributes:
    hidden_BLD: hidden states after the final norm.
    load: stacked [N, ...], or None without experts.
    cache: {'dense': a list of entries [B, L, ...], or one [N, B, L, ...] where
      the layers are a scan; 'experts': likewise}.
  """

  hidden_BLD: jax.Array
  load: Load | None
  cache: dict[str, PyTree]


class Transformer(nn.Module):
  """DeepSeek-V3 or its dense baseline, as configured."""

  config: ModelConfig
  policy: Policy = HIGH
  compute: ComputeConfig = DEFAULT

  if TYPE_CHECKING:
    # Flax declares a pair for those who ask for mutable collections.
    def apply(self, variables, *args, **kwargs) -> Any: ...

    # Flax makes one of the fields.
    def __hash__(self) -> int: ...

  def setup(self):
    config, policy, compute = self.config, self.policy, self.compute
    self.embedding = Embedding(config)
    if config.num_plain_layers:
      self.dense_layers = stack.stacked(
        config, False, config.num_plain_layers, policy, compute
      )
    if config.num_expert_layers:
      self.expert_layers = stack.stacked(
        config, True, config.num_expert_layers, policy, compute
      )
    self.final_norm = RmsNorm(config.embed_dim, 'embed', config.norm_eps)
    head_shape = (config.embed_dim, config.vocab_size)
    self.head = matrix(self, 'head', head_shape, ('embed', 'vocab'), config)
    self.mtp = [
      MtpModule(config, policy, compute) for _ in range(config.mtp_depth)
    ]

  def __call__(
    self,
    tokens_BL: jax.Array,
    positions_BL: jax.Array,
    segments_BL: jax.Array | None,
    router_bias: dict[str, jax.Array],
  ) -> Trunk:
    """Runs whole sequences through the main model.

    Args:
      tokens_BL: token ids.
      positions_BL: rotary positions.
      segments_BL: document numbers that attention doesn't cross, or None.
      router_bias: {'layers': float32 [N, E], 'mtp': [J, E]}; {} without biases.

    Returns:
      Hidden states, expert load and cache entries.
    """
    x_BLD = self.embed(tokens_BL)
    cache, load = {}, None
    shared = positions_BL, segments_BL
    if self.config.num_plain_layers:
      x_BLD, outputs = stack.run(
        self.dense_layers, '__call__', x_BLD, (None,), shared
      )
      cache['dense'] = _apart(outputs)[1]
    if self.config.num_expert_layers:
      bias_NE = self._bias(router_bias, LAYERS)
      x_BLD, outputs = stack.run(
        self.expert_layers, '__call__', x_BLD, (bias_NE,), shared
      )
      load, cache['experts'] = _apart(outputs)
      load = stack.join(load)
    return Trunk(self.final_norm(x_BLD), load, cache)

  def embed(self, tokens_BL: jax.Array) -> jax.Array:
    """Returns the input of the first layer."""
    return constrain(self._embed(tokens_BL), 'batch', 'length', 'embed')

  def decode(
    self,
    tokens_B: jax.Array,
    lengths_B: jax.Array,
    cache: dict[str, PyTree],
    router_bias: dict[str, jax.Array],
  ) -> tuple[jax.Array, dict[str, PyTree]]:
    """Runs one new token per request on the cache.

    Args:
      tokens_B: the new tokens.
      lengths_B: number of cached positions so far, which is the new token's
        position.
      cache: like the trunk's, with space for M positions.
      router_bias: as for the trunk.

    Returns:
      (hidden state after the final norm [B, D], the cache with the token).
    """
    x_BD, new = self._embed(tokens_B), {}
    if self.config.num_plain_layers:
      x_BD, new['dense'] = stack.run(
        self.dense_layers, 'decode', x_BD, (None, cache['dense']), (lengths_B,)
      )
    if self.config.num_expert_layers:
      bias_NE = self._bias(router_bias, LAYERS)
      own = bias_NE, cache['experts']
      x_BD, new['experts'] = stack.run(
        self.expert_layers, 'decode', x_BD, own, (lengths_B,)
      )
    return self.final_norm(x_BD), new

  def predict_further(
    self,
    hidden_BLD: jax.Array,
    next_tokens_BL: jax.Array,
    positions_BL: jax.Array,
    segments_BL: jax.Array | None,
    router_bias: dict[str, jax.Array],
  ) -> tuple[list[jax.Array], Load | None]:
    """Runs the MTP modules in sequence.

    Args:
      hidden_BLD: the trunk's hidden states after the final norm.
      next_tokens_BL: token i + 1 at position i. Depth k reads token i + k; the
        last k - 1 positions, which have none, read token 0, and the caller must
        mask them. Attention is causal: no other position sees them. They count
        in the module's expert load.
      positions_BL: rotary positions.
      segments_BL: document numbers, or None.
      router_bias: as for the trunk.

    Returns:
      (for each depth k, the hidden states [B, L, D] that predict token
      i + k + 1; stacked load [J, ...] or None).
    """
    outputs, loads = [], []
    if not self.config.mtp_depth:
      return outputs, None
    bias_JE = self._bias(router_bias, MTP)
    for k, module in enumerate(self.mtp):
      embedded_BLD = self._embed(shift_left(next_tokens_BL, k))
      bias_E = None if bias_JE is None else bias_JE[k]
      hidden_BLD, load = module(
        hidden_BLD, embedded_BLD, bias_E, positions_BL, segments_BL
      )
      outputs.append(hidden_BLD)
      loads.append(load)
    if loads[0] is None:
      return outputs, None
    return outputs, jax.tree.map(lambda *x: jnp.stack(x), *loads)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V] from hidden states after the final norm."""
    return jnp.einsum(
      '...D,DV->...V',
      hidden,
      self.head,
      preferred_element_type=jnp.float32,
    )

  def initialise(self, tokens_BL: jax.Array) -> jax.Array:
    """Uses every parameter, for `init`."""
    positions_BL = jnp.broadcast_to(
      jnp.arange(tokens_BL.shape[1]), tokens_BL.shape
    )
    trunk = self(tokens_BL, positions_BL, None, {})
    self.predict_further(trunk.hidden_BLD, tokens_BL, positions_BL, None, {})
    return self.logits(trunk.hidden_BLD)

  def _embed(self, tokens):
    """Embeds tokens in the compute dtype; the table stays float32."""
    return self.embedding(tokens, self.head.dtype)

  def _bias(self, router_bias, key):
    """Returns the stored bias; zeros where the router has none."""
    if not self.config.uses_experts:
      return None
    if key in router_bias:
      return router_bias[key]
    return jnp.zeros(bias_shapes(self.config, every_router=True)[key])


def bias_shapes(
  config: ModelConfig, every_router: bool = False
) -> dict[str, tuple[int, int]]:
  """Shapes of the router biases: {'layers': [N, E], 'mtp': [J, E]}.

  Args:
    config: the model.
    every_router: whether to include routers without a bias (softmax).
  """
  if not (config.uses_router_bias or (every_router and config.uses_experts)):
    return {}
  shapes = {LAYERS: (config.num_expert_layers, config.num_experts)}
  if config.mtp_depth:
    shapes[MTP] = (config.mtp_depth, config.num_experts)
  return shapes


def _apart(outputs):
  """Returns (loads, cache entries) of all layers."""
  if isinstance(outputs, list):
    return [load for load, _ in outputs], [entry for _, entry in outputs]
  return outputs


def shift_left(x_BL: Array, steps: int) -> Array:
  """Moves x's position i + steps to position i; 0 past the end."""
  if not steps:
    return x_BL
  return jnp.pad(x_BL[:, steps:], ((0, 0), (0, steps)))
