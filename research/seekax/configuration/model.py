"""The group `model`: the architecture, a part of a model's identity.

The defaults are the released 671B model; other sizes are in presets.py.
"""

import dataclasses

from seekax.configuration.fields import (
  check_not_negative,
  check_positive,
  key,
  require,
  require_choice,
)

ATTENTION_KINDS = ('mla', 'gqa', 'mha', 'mqa')
FFN_KINDS = ('dense', 'experts')
ROUTER_KINDS = ('sigmoid', 'softmax')
GROUP_SCORES = ('top2', 'max')
ROPE_SCALINGS = ('none', 'linear', 'yarn', 'llama3')
ROPE_LAYOUTS = ('interleaved', 'half')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture. Trailing symbols are those of the DeepSeek-V3 report."""

  vocab_size: int = key(129280, 'size of the vocabulary (V)')
  embed_dim: int = key(7168, 'width of the residual stream (d)')
  num_layers: int = key(61, 'transformer layers, MTP modules not counted (L)')
  num_dense_layers: int = key(3, 'number of first layers with a dense FFN')
  context_length: int = key(163840, 'longest sequence in tokens')

  attention: str = key('mla', 'kind of attention: mla, gqa, mha, mqa')
  num_heads: int = key(128, 'query heads (n_h)')
  num_kv_heads: int = key(0, 'key/value heads, gqa only')
  query_latent_dim: int = key(1536, "query latent (d_c'); 0: no query latent")
  kv_latent_dim: int = key(512, 'key/value latent (d_c), mla only')
  nope_head_dim: int = key(128, 'query/key width per head without position')
  rope_head_dim: int = key(64, 'rotary query/key width per head (d_h^R)')
  value_head_dim: int = key(128, 'value width per head')

  ffn: str = key(
    'experts', 'FFN of the layers after the dense ones: experts, dense'
  )
  mlp_dim: int = key(18432, 'hidden width of a dense FFN')
  expert_dim: int = key(2048, 'hidden width of one expert')
  num_experts: int = key(256, 'routed experts per layer (N_r)')
  num_shared_experts: int = key(1, 'shared experts, computed as one FFN (N_s)')
  experts_per_token: int = key(8, 'routed experts chosen per token (K_r)')
  num_expert_groups: int = key(8, 'groups the experts are divided in')
  num_kept_groups: int = key(4, 'groups a token may choose from (M)')
  router: str = key('sigmoid', 'affinity: sigmoid (V3) or softmax (V2)')
  group_score: str = key('top2', 'score of a group: top2 (V3) or max (V2)')
  normalize_gates: bool = key(True, 'divide the gates of a token by their sum')
  routed_scale: float = key(2.5, "factor on the routed experts' output")
  mtp_depth: int = key(1, 'multi-token prediction modules (D)')

  norm_eps: float = key(1e-6, 'epsilon of the RMS norms')
  init_std: float = key(0.006, 'standard deviation of the initial weights')

  rope_theta: float = key(10000.0, 'base of the rotary frequencies')
  rope_layout: str = key('interleaved', 'rotary pairs: interleaved or half')
  rope_scaling: str = key(
    'yarn', 'context extension: none, linear, yarn, llama3'
  )
  rope_factor: float = key(40.0, 'context extension factor (s)')
  rope_original_length: int = key(4096, 'context length before its extension')
  yarn_beta_fast: float = key(
    32.0, 'rotations above which YaRN keeps a frequency'
  )
  yarn_beta_slow: float = key(
    1.0, 'rotations below which YaRN divides it by the factor'
  )
  yarn_mscale: float = key(1.0, 'YaRN magnitude on rotary queries and keys')
  yarn_mscale_all_dim: float = key(
    1.0, 'YaRN magnitude on whole attention logits'
  )
  llama3_low_freq_factor: float = key(1.0, 'llama3 scaling, low band edge')
  llama3_high_freq_factor: float = key(4.0, 'llama3 scaling, high band edge')

  @property
  def num_expert_layers(self) -> int:
    return self.num_layers - self.num_dense_layers if self.uses_experts else 0

  @property
  def num_plain_layers(self) -> int:
    """Layers with a dense FFN: the first ones, or all of a dense model."""
    return self.num_layers - self.num_expert_layers

  @property
  def uses_experts(self) -> bool:
    return self.ffn == 'experts'

  @property
  def uses_router_bias(self) -> bool:
    return self.uses_experts and self.router == 'sigmoid'

  @property
  def qk_head_dim(self) -> int:
    return self.nope_head_dim + self.rope_head_dim

  @property
  def kv_heads(self) -> int:
    """Key/value heads that are computed (and, except for MLA, cached)."""
    return {'gqa': self.num_kv_heads, 'mqa': 1}.get(
      self.attention, self.num_heads
    )

  @property
  def shared_dim(self) -> int:
    """Hidden width of the fused shared expert."""
    return self.num_shared_experts * self.expert_dim

  def __post_init__(self):
    require_choice('model.attention', self.attention, ATTENTION_KINDS)
    require_choice('model.ffn', self.ffn, FFN_KINDS)
    require_choice('model.rope_scaling', self.rope_scaling, ROPE_SCALINGS)
    require_choice('model.rope_layout', self.rope_layout, ROPE_LAYOUTS)
    check_positive(
      'model',
      self,
      (
        'vocab_size',
        'embed_dim',
        'num_layers',
        'context_length',
        'num_heads',
      )
      + ('rope_head_dim', 'value_head_dim', 'norm_eps')
      + ('init_std', 'rope_theta', 'rope_original_length', 'rope_factor'),
    )
    check_not_negative(
      'model',
      self,
      ('num_dense_layers', 'nope_head_dim', 'query_latent_dim', 'mtp_depth')
      + ('num_shared_experts',),
    )
    self._check_attention()
    if self.uses_experts:
      self._check_experts()
    if self.num_plain_layers or self.ffn == 'dense':
      check_positive('model', self, ('mlp_dim',))

  def _check_attention(self):
    require(
      self.rope_head_dim % 2 == 0,
      f'model.rope_head_dim={self.rope_head_dim} is odd; rotary dimensions '
      'turn in pairs, make it even',
    )
    require(
      self.rope_theta > 1, f'model.rope_theta={self.rope_theta} must be above 1'
    )
    require(
      self.rope_scaling != 'yarn'
      or self.yarn_beta_fast >= self.yarn_beta_slow > 0,
      f'model.yarn_beta_fast={self.yarn_beta_fast} must not be below '
      f'model.yarn_beta_slow={self.yarn_beta_slow}, and both above 0',
    )
    require(
      self.rope_scaling != 'llama3'
      or self.llama3_high_freq_factor > self.llama3_low_freq_factor,
      f'model.llama3_high_freq_factor={self.llama3_high_freq_factor} must be '
      f'above model.llama3_low_freq_factor={self.llama3_low_freq_factor}',
    )
    if self.attention == 'mla':
      check_positive('model', self, ('kv_latent_dim', 'nope_head_dim'))
    if self.attention == 'gqa':
      require(
        self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads == 0,
        f'model.num_heads={self.num_heads} is not divisible by '
        f'model.num_kv_heads={self.num_kv_heads}; gqa shares each key/value '
        'head among equally many query heads',
      )

  def _check_experts(self):
    require_choice('model.router', self.router, ROUTER_KINDS)
    require_choice('model.group_score', self.group_score, GROUP_SCORES)
    check_positive(
      'model',
      self,
      ('num_experts', 'expert_dim', 'experts_per_token', 'num_expert_groups')
      + ('num_kept_groups', 'routed_scale'),
    )
    require(
      self.num_dense_layers < self.num_layers,
      f'model.num_dense_layers={self.num_dense_layers} leaves no expert layer '
      f'of model.num_layers={self.num_layers}; lower it or set '
      'model.ffn=dense',
    )
    require(
      self.num_experts % self.num_expert_groups == 0,
      f'model.num_experts={self.num_experts} is not divisible by '
      f'model.num_expert_groups={self.num_expert_groups}; change one of them',
    )
    require(
      self.num_kept_groups <= self.num_expert_groups,
      f'model.num_kept_groups={self.num_kept_groups} is above '
      f'model.num_expert_groups={self.num_expert_groups}',
    )
    group_size = self.num_experts // self.num_expert_groups
    reachable = self.num_kept_groups * group_size
    require(
      self.experts_per_token <= reachable,
      f'model.experts_per_token={self.experts_per_token} is above the '
      f'{reachable} experts in the kept groups; keep more groups or choose '
      'fewer experts',
    )
    require(
      self.num_expert_groups == 1
      or self.group_score == 'max'
      or group_size >= 2,
      f'model.num_expert_groups={self.num_expert_groups} leaves groups of one '
      'expert, which have no two best; use model.group_score=max',
    )


# Says how a model began, not what it computes.
_HOW = ('init_std',)
_ONLY_EXPERTS = ('expert_dim', 'num_experts', 'num_shared_experts', 'router')
_ONLY_EXPERTS += ('experts_per_token', 'normalize_gates', 'routed_scale')
_ONLY_GROUPS = ('num_expert_groups', 'num_kept_groups', 'group_score')
_ONLY_LATENT = ('query_latent_dim', 'kv_latent_dim')
_ONLY_SCALED = ('rope_factor', 'rope_original_length')
# Beginnings of what a context extension changes.
_POSITIONS = ('context_length', 'rope_theta', 'rope_scaling', 'rope_factor')
_POSITIONS += ('rope_original_length', 'yarn_', 'llama3_')


def _what(model: ModelConfig) -> dict[str, object]:
  """The fields that decide what a model computes with its weights."""
  fields = dataclasses.asdict(model)
  unused = set(_HOW)
  if not model.uses_experts:
    unused |= {*_ONLY_EXPERTS, *_ONLY_GROUPS, 'num_dense_layers'}
  elif model.num_kept_groups == model.num_expert_groups:
    unused |= set(_ONLY_GROUPS)
  if model.attention == 'mla':
    unused.add('num_kv_heads')
  else:  # MHA and MQA are the ends of GQA.
    unused |= set(_ONLY_LATENT)
    fields |= {'attention': 'gqa', 'num_kv_heads': model.kv_heads}
  if model.rope_scaling == 'none':
    unused |= set(_ONLY_SCALED)
  for scaling in set(ROPE_SCALINGS) - {model.rope_scaling}:
    unused |= {name for name in fields if name.startswith(f'{scaling}_')}
  return {name: v for name, v in fields.items() if name not in unused}


def model_differences(
  there: ModelConfig, here: ModelConfig, extended: bool = False
) -> list[str]:
  """What keeps two models from computing the same with the same weights.

  Args:
    there: the one.
    here: the other.
    extended: how positions are encoded, and how many, may differ.
  """
  there_, here_ = _what(there), _what(here)
  allowed = _POSITIONS if extended else ()
  return [
    f'model.{name}: {getattr(there, name)!r} there, {getattr(here, name)!r} '
    'here'
    for name in {**there_, **here_}
    if there_.get(name) != here_.get(name)
    and getattr(there, name) != getattr(here, name)
    and not name.startswith(allowed)
  ]
