"""How many parameters a model has, in closed form, part by part.

Counts follow the released checkpoints: norms are counted, and so is the router
bias (one float32 per routed expert), which is state and not a parameter in
training. Other projects leave one or the other out.
"""

import dataclasses
import functools

from seekax.configuration.model import ModelConfig

# A SwiGLU holds three matrices: gate, up and down.
_SWIGLU_MATRICES = 3


@dataclasses.dataclass(frozen=True)
class ParameterCounts:
  """Numbers of parameters; a part that repeats is counted once.

  `attention`, `block_norms`, `dense_ffn`, `shared_expert` and `router` belong
  to one layer, `routed_expert` is one expert; the properties add all layers up.
  """

  model: ModelConfig
  embedding: int
  head: int
  final_norm: int
  attention: int  # with its latent norms
  block_norms: int  # before attention and before the FFN
  dense_ffn: int
  routed_expert: int
  shared_expert: int  # all shared experts of a layer, fused
  router: int  # with its bias, if it has one

  @property
  def expert_ffn(self) -> int:
    """FFN of one expert layer: router, shared and all routed experts."""
    routed = self.model.num_experts * self.routed_expert
    return self.router + self.shared_expert + routed

  @property
  def activated_expert_ffn(self) -> int:
    """The part of `expert_ffn` that one token passes."""
    routed = self.model.experts_per_token * self.routed_expert
    return self.router + self.shared_expert + routed

  @property
  def plain_block(self) -> int:
    """One layer with a dense FFN."""
    return self.attention + self.block_norms + self.dense_ffn

  @property
  def expert_block(self) -> int:
    """One layer with experts."""
    return self.attention + self.block_norms + self.expert_ffn

  @property
  def activated_expert_block(self) -> int:
    """The part of one expert layer that one token passes."""
    return self.attention + self.block_norms + self.activated_expert_ffn

  @property
  def total(self) -> int:
    """Both vocabulary tables and the router bias; MTP modules left out."""
    return (
      self.embedding
      + self.head
      + self.final_norm
      + self.model.num_plain_layers * self.plain_block
      + self.model.num_expert_layers * self.expert_block
    )

  @property
  def activated(self) -> int:
    """Parameters of the main model that one token passes, both tables in full.

    Only one row of the embedding is read, yet the weights' README of
    DeepSeek-V3 counts both tables.
    """
    return self.activated_without_embedding + self.embedding

  @property
  def activated_without_embedding(self) -> int:
    """`activated` less the input embedding: what is multiplied (V3: 37B)."""
    return (
      self.head
      + self.final_norm
      + self.model.num_plain_layers * self.plain_block
      + self.model.num_expert_layers * self.activated_expert_block
    )

  @property
  def mtp(self) -> int:
    """All MTP modules. They share both vocabulary tables, not counted here."""
    return self.model.mtp_depth * (self._mtp_block + self._mtp_joint)

  @property
  def mtp_activated(self) -> int:
    """What one token passes in all MTP modules, each using the shared head."""
    block = (
      self.activated_expert_block
      if self.model.uses_experts
      else self.plain_block
    )
    return self.model.mtp_depth * (block + self._mtp_joint + self.head)

  @property
  def _mtp_block(self) -> int:
    return self.expert_block if self.model.uses_experts else self.plain_block

  @property
  def _mtp_joint(self) -> int:
    """Projection of [embedding; hidden] to the width, and three norms."""
    width = self.model.embed_dim
    return 2 * width * width + 3 * width


@functools.lru_cache(maxsize=64)
def count_parameters(model: ModelConfig) -> ParameterCounts:
  """Counts from shapes alone.

  Args:
    model: any valid architecture.

  Returns:
    Counts in parameters. For DeepSeek-V3: `total` 671,026,419,200,
    `activated` 37,552,297,472, `mtp` 11,610,068,224.
  """
  width = model.embed_dim
  expert = _swiglu(width, model.expert_dim) if model.uses_experts else 0
  shared = _swiglu(width, model.shared_dim) if model.uses_experts else 0
  router = width * model.num_experts if model.uses_experts else 0
  bias = model.num_experts if model.uses_router_bias else 0
  return ParameterCounts(
    model=model,
    embedding=model.vocab_size * width,
    head=width * model.vocab_size,
    final_norm=width,
    attention=_mla(model) if model.attention == 'mla' else _grouped(model),
    block_norms=2 * width,
    dense_ffn=_swiglu(width, model.mlp_dim),
    routed_expert=expert,
    shared_expert=shared,
    router=router + bias,
  )


def _swiglu(width: int, hidden: int) -> int:
  return _SWIGLU_MATRICES * width * hidden


def _query(model: ModelConfig, width: int) -> int:
  """The matrix from a vector of `width` to all heads' queries."""
  return width * model.num_heads * model.qk_head_dim


def _output(model: ModelConfig) -> int:
  return model.num_heads * model.value_head_dim * model.embed_dim


def _mla(model: ModelConfig) -> int:
  """Multi-head latent attention of one layer (DeepSeek-V3, section 2.1.1)."""
  width, latent = model.embed_dim, model.kv_latent_dim
  if model.query_latent_dim:
    down = width * model.query_latent_dim + model.query_latent_dim
    query = down + _query(model, model.query_latent_dim)
  else:
    query = _query(model, width)
  # The rotary key has no norm and is shared by all heads.
  key_value = width * (latent + model.rope_head_dim) + latent
  expand = (
    latent * model.num_heads * (model.nope_head_dim + model.value_head_dim)
  )
  return query + key_value + expand + _output(model)


def _grouped(model: ModelConfig) -> int:
  """Grouped-query attention of one layer; MHA and MQA are its extremes."""
  key_value = model.qk_head_dim + model.value_head_dim
  return (
    _query(model, model.embed_dim)
    + model.embed_dim * model.kv_heads * key_value
    + _output(model)
  )
