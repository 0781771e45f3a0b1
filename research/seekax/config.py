"""Configuration: one frozen dataclass per group, validation in words.

The defaults of `ModelConfig` are the released 671B model; other sizes are in
presets.py. A value is never None: 0 or '' means absent, so that every key can
be overridden from the command line.
"""

import dataclasses
import difflib
import math
from typing import Any

import ml_collections


class InputError(ValueError):
  """What the user gave can't be used; one line says what, where, the fix.

  Attributes:
    exit_code: of the command that it ends.
  """

  exit_code = 2


class ConfigError(InputError):
  """A configuration that can't work."""


def _key(default: Any, help_text: str) -> Any:
  return dataclasses.field(default=default, metadata={'help': help_text})


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise ConfigError(message)


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  _require(
    value in choices,
    f'{name}={value!r} is not one of {", ".join(choices)}'
    + did_you_mean(str(value), choices),
  )


def did_you_mean(word: str, known) -> str:
  """Returns '; did you mean X?' for the nearest known word, or ''."""
  near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
  return f'; did you mean {near[0]!r}?' if near else ''


def _is_finite(value: float) -> bool:
  """Whether a number can be used; integers above 63 bits can't either."""
  return abs(value) < (2**63 if isinstance(value, int) else math.inf)


def _check_positive(group: str, config: Any, names: tuple[str, ...]) -> None:
  for name in names:
    value = getattr(config, name)
    _require(
      _is_finite(value) and value > 0,
      f'{group}.{name}={value} must be above 0',
    )


def _check_not_negative(
  group: str, config: Any, names: tuple[str, ...]
) -> None:
  for name in names:
    value = getattr(config, name)
    _require(
      _is_finite(value) and value >= 0,
      f'{group}.{name}={value} must not be negative',
    )


ATTENTION_KINDS = ('mla', 'gqa', 'mha', 'mqa')
FFN_KINDS = ('dense', 'experts')
ROUTER_KINDS = ('sigmoid', 'softmax')
GROUP_SCORES = ('top2', 'max')
ROPE_SCALINGS = ('none', 'linear', 'yarn', 'llama3')
ROPE_LAYOUTS = ('interleaved', 'half')
GROUPED_MATMULS = (
  'auto',
  'blocked',
  'pallas',
  'mosaic',
  'triton',
  'ragged',
  'dense',
)
ATTENTION_BACKENDS = ('auto', 'chunked', 'cudnn', 'tokamax', 'plain')
LATENT_ATTENTION_BACKENDS = ('auto', 'plain', 'pallas')
REMAT_POLICIES = ('none', 'paper', 'full')
# Of a batch; the stretches of a ramp are at most as many.
MAX_MICRO_BATCHES = 2**16
# The largest seed that every random generator here takes.
MAX_SEED = 2**31 - 1
# From the slowest link to the fastest, as devices are numbered.
MESH_AXES = (
  'pipeline',
  'data',
  'fsdp',
  'expert_node',
  'expert',
  'context',
  'tensor',
)
# Those that split a batch: expert ranks are data ranks.
BATCH_AXES = ('data', 'fsdp', 'expert_node', 'expert')
EXCHANGES = ('all_to_all', 'gather', 'ragged')
DISPATCH_DTYPES = ('compute', 'float8')
# Values along a side of FP8's tiles and blocks (DeepSeek-V3, section 3.3.2).
FP8_TILE = 128
# Of weights that are used, and of training.
PRECISIONS = ('float32', 'bfloat16')
OPTIMIZERS = ('adamw', 'muon')
MOMENT_DTYPES = ('float32', 'bfloat16')
TRAIN_PRECISIONS = (*PRECISIONS, 'fp8')
FP8_SCALINGS = ('tiles', 'tensor')
FP8_GRADIENT_FORMATS = ('e4m3', 'e5m2')
FP8_GRADIENT_SCALINGS = ('tiles', 'blocks')
FP8_ACCUMULATIONS = ('float32', 'tensor_core', 'unpromoted')
FP8_PRODUCTS = ('pallas', 'emulated')
# Products that a tensor core adds at once.
FP8_GROUP = 32


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture. Trailing symbols are those of the DeepSeek-V3 report."""

  vocab_size: int = _key(129280, 'size of the vocabulary (V)')
  embed_dim: int = _key(7168, 'width of the residual stream (d)')
  num_layers: int = _key(61, 'transformer layers, MTP modules not counted (L)')
  num_dense_layers: int = _key(3, 'first layers with a dense FFN')
  context_length: int = _key(163840, 'longest sequence; windows of score')

  attention: str = _key('mla', 'kind of attention: mla, gqa, mha, mqa')
  num_heads: int = _key(128, 'query heads (n_h)')
  num_kv_heads: int = _key(0, 'key/value heads, gqa only')
  query_latent_dim: int = _key(1536, "query latent (d_c'); 0: no query latent")
  kv_latent_dim: int = _key(512, 'key/value latent (d_c), mla only')
  nope_head_dim: int = _key(128, 'query/key width per head without position')
  rope_head_dim: int = _key(64, 'rotary query/key width per head (d_h^R)')
  value_head_dim: int = _key(128, 'value width per head')

  ffn: str = _key('experts', 'kind of FFN after the dense layers')
  mlp_dim: int = _key(18432, 'hidden width of a dense FFN')
  expert_dim: int = _key(2048, 'hidden width of one expert')
  num_experts: int = _key(256, 'routed experts per layer (N_r)')
  num_shared_experts: int = _key(1, 'shared experts, fused to one (N_s)')
  experts_per_token: int = _key(8, 'routed experts chosen per token (K_r)')
  num_expert_groups: int = _key(8, 'groups the experts are divided in')
  num_kept_groups: int = _key(4, 'groups a token may choose from (M)')
  router: str = _key('sigmoid', 'affinity: sigmoid (V3) or softmax (V2)')
  group_score: str = _key('top2', 'score of a group: top2 (V3) or max (V2)')
  normalize_gates: bool = _key(True, 'divide affinities by their sum')
  routed_scale: float = _key(2.5, 'factor on the routed branch')
  mtp_depth: int = _key(1, 'multi-token prediction modules (D)')

  norm_eps: float = _key(1e-6, 'epsilon of the RMS norms')
  latent_norm_eps: float = _key(1e-6, 'epsilon of the two latent norms')
  init_std: float = _key(0.006, 'standard deviation of the initial weights')

  rope_theta: float = _key(10000.0, 'base of the rotary frequencies')
  rope_layout: str = _key('interleaved', 'rotary pairs: interleaved or half')
  rope_scaling: str = _key(
    'yarn', 'context extension: none, linear, yarn, llama3'
  )
  rope_factor: float = _key(40.0, 'context extension factor (s)')
  rope_original_length: int = _key(4096, 'context before extension')
  yarn_beta_fast: float = _key(32.0, 'rotations above which YaRN keeps')
  yarn_beta_slow: float = _key(1.0, 'rotations below which YaRN interpolates')
  yarn_mscale: float = _key(1.0, 'YaRN magnitude on the rotary tables')
  yarn_mscale_all_dim: float = _key(1.0, 'YaRN magnitude on the whole logit')
  llama3_low_freq_factor: float = _key(1.0, 'llama3 scaling, low band edge')
  llama3_high_freq_factor: float = _key(4.0, 'llama3 scaling, high band edge')

  # How it is computed; the tree of parameters doesn't depend on these.
  grouped_matmul: str = _key(
    'auto', 'auto, blocked, pallas, mosaic, triton, ragged, dense'
  )
  attention_backend: str = _key('auto', 'auto, chunked, cudnn, tokamax, plain')
  latent_attention_backend: str = _key('auto', 'decoding: auto, plain, pallas')
  exchange: str = _key(
    'all_to_all',
    'of tokens on a mesh: all_to_all; gather; ragged, on GPUs alone',
  )
  exchange_slack: float = _key(1.25, "an exchange's room over balanced loads")
  dispatch_dtype: str = _key('compute', 'sent to experts: compute, float8')
  remat: str = _key('none', 'recomputed for gradients: none, paper, full')
  unroll_layers: int = _key(8, 'stacks of more layers than this are a scan')

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
    _require_choice('model.attention', self.attention, ATTENTION_KINDS)
    _require_choice('model.ffn', self.ffn, FFN_KINDS)
    _require_choice('model.rope_scaling', self.rope_scaling, ROPE_SCALINGS)
    _require_choice('model.rope_layout', self.rope_layout, ROPE_LAYOUTS)
    _require_choice('model.remat', self.remat, REMAT_POLICIES)
    _require_choice(
      'model.grouped_matmul', self.grouped_matmul, GROUPED_MATMULS
    )
    _require_choice(
      'model.attention_backend', self.attention_backend, ATTENTION_BACKENDS
    )
    _require_choice(
      'model.latent_attention_backend',
      self.latent_attention_backend,
      LATENT_ATTENTION_BACKENDS,
    )
    _require_choice('model.exchange', self.exchange, EXCHANGES)
    _require_choice(
      'model.dispatch_dtype', self.dispatch_dtype, DISPATCH_DTYPES
    )
    _check_positive(
      'model',
      self,
      (
        'exchange_slack',
        'vocab_size',
        'embed_dim',
        'num_layers',
        'context_length',
        'num_heads',
      )
      + ('rope_head_dim', 'value_head_dim', 'norm_eps', 'latent_norm_eps')
      + ('init_std', 'rope_theta', 'rope_original_length', 'rope_factor'),
    )
    _check_not_negative(
      'model',
      self,
      ('num_dense_layers', 'nope_head_dim', 'query_latent_dim', 'mtp_depth')
      + ('num_shared_experts',),
    )
    self._check_attention()
    if self.uses_experts:
      self._check_experts()
    if self.num_plain_layers or self.ffn == 'dense':
      _check_positive('model', self, ('mlp_dim',))

  def _check_attention(self):
    _require(
      self.rope_head_dim % 2 == 0,
      f'model.rope_head_dim={self.rope_head_dim} is odd; rotary dimensions '
      'turn in pairs, make it even',
    )
    _require(
      self.rope_theta > 1, f'model.rope_theta={self.rope_theta} must be above 1'
    )
    _require(
      self.rope_scaling != 'yarn'
      or self.yarn_beta_fast >= self.yarn_beta_slow > 0,
      f'model.yarn_beta_fast={self.yarn_beta_fast} must not be below '
      f'model.yarn_beta_slow={self.yarn_beta_slow}, and both above 0',
    )
    _require(
      self.rope_scaling != 'llama3'
      or self.llama3_high_freq_factor > self.llama3_low_freq_factor,
      f'model.llama3_high_freq_factor={self.llama3_high_freq_factor} must be '
      f'above model.llama3_low_freq_factor={self.llama3_low_freq_factor}',
    )
    if self.attention == 'mla':
      _check_positive('model', self, ('kv_latent_dim', 'nope_head_dim'))
    if self.attention == 'gqa':
      _require(
        self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads == 0,
        f'model.num_heads={self.num_heads} is not divisible by '
        f'model.num_kv_heads={self.num_kv_heads}; gqa shares each key/value '
        'head among equally many query heads',
      )

  def _check_experts(self):
    _require_choice('model.router', self.router, ROUTER_KINDS)
    _require_choice('model.group_score', self.group_score, GROUP_SCORES)
    _check_positive(
      'model',
      self,
      ('num_experts', 'expert_dim', 'experts_per_token', 'num_expert_groups')
      + ('num_kept_groups', 'routed_scale'),
    )
    _require(
      self.num_dense_layers < self.num_layers,
      f'model.num_dense_layers={self.num_dense_layers} leaves no expert layer '
      f'of model.num_layers={self.num_layers}; lower it or set '
      'model.ffn=dense',
    )
    _require(
      self.num_experts % self.num_expert_groups == 0,
      f'model.num_experts={self.num_experts} is not divisible by '
      f'model.num_expert_groups={self.num_expert_groups}; change one of them',
    )
    _require(
      self.num_kept_groups <= self.num_expert_groups,
      f'model.num_kept_groups={self.num_kept_groups} is above '
      f'model.num_expert_groups={self.num_expert_groups}',
    )
    group_size = self.num_experts // self.num_expert_groups
    reachable = self.num_kept_groups * group_size
    _require(
      self.experts_per_token <= reachable,
      f'model.experts_per_token={self.experts_per_token} is above the '
      f'{reachable} experts in the kept groups; keep more groups or choose '
      'fewer experts',
    )
    _require(
      self.num_expert_groups == 1
      or self.group_score == 'max'
      or group_size >= 2,
      f'model.num_expert_groups={self.num_expert_groups} leaves groups of one '
      'expert, which have no two best; use model.group_score=max',
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where the text comes from and how it becomes batches."""

  source: str = _key(
    'stdlib',
    "'stdlib' (Python's own library); a text, .jsonl, .jsonl.gz or .parquet "
    "file; a folder; 'a,b' (one source); '0.7*a,0.3*b' (shares of tokens)",
  )
  tokenizer: str = _key(
    '',
    "a tokenizer.json; '': that of the weights the run starts from, or a new "
    'one, trained on the source',
  )
  text_field: str = _key('text', 'field of JSON lines, column of parquet')
  include: str = _key(
    '', "files of folders to read, as '*.md,docs/*'; '': all of them"
  )
  exclude: str = _key('', 'files of folders to leave out, written likewise')
  max_document_bytes: int = _key(
    256 << 20, 'a longer file of text, line or row is refused'
  )
  heldout_fraction: float = _key(0.04, 'share of documents held out')
  sequence_length: int = _key(4096, 'tokens per sequence (S)')
  batch_size: int = _key(15360, 'sequences per optimizer step, all devices')
  num_shards: int = _key(
    8,
    'logical data shards, at most: the largest divisor of batch_size up to '
    'this; fixed for the life of a run',
  )
  isolate_documents: bool = _key(
    False, 'mask attention across documents and restart positions'
  )
  seed: int = _key(0, 'order of the documents')
  fim_rate: float = _key(
    0.0, 'share of documents to fill in the middle of (V3: 0.1)'
  )
  split_punctuation_rate: float = _key(
    0.0, 'share of merged punctuation and line ends to split (V3: not given)'
  )
  skip_corrupt: bool = _key(
    False, 'pass over unreadable records of token shards, and count them'
  )

  def __post_init__(self):
    for name in ('fim_rate', 'split_punctuation_rate'):
      value = getattr(self, name)
      _require(0 <= value <= 1, f'data.{name}={value} is not in [0, 1]')
    _check_positive(
      'data',
      self,
      ('sequence_length', 'batch_size', 'num_shards', 'max_document_bytes'),
    )
    _require(bool(self.text_field), "data.text_field is ''; give a name")
    _require(
      0 < self.heldout_fraction < 1,
      f'data.heldout_fraction={self.heldout_fraction} is not between 0 and 1',
    )
    # Each shard gives equally many rows. Whoever reads the config finds the
    # number that is used.
    most = min(self.num_shards, self.batch_size)
    divisors = (n for n in range(most, 0, -1) if self.batch_size % n == 0)
    object.__setattr__(self, 'num_shards', next(divisors))


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """The optimizer and its rate, scheduled by the tokens trained on."""

  name: str = _key('adamw', 'adamw, or muon for the matrices')

  learning_rate: float = _key(2.2e-4, 'peak learning rate')
  final_learning_rate: float = _key(2.2e-5, 'learning rate after the cosine')
  last_learning_rate: float = _key(7.3e-6, 'learning rate after final_tokens')
  warmup_steps: int = _key(2000, 'steps of linear warm-up from 0')
  constant_tokens: int = _key(
    10_000_000_000_000, 'tokens to which the peak holds, warm-up included'
  )
  decay_tokens: int = _key(
    0, 'tokens of cosine decay; 0: to the end of the run'
  )
  final_tokens: int = _key(
    0, 'tokens at the final rate before the last one; 0: to the end of the run'
  )
  beta1: float = _key(0.9, "Adam's first decay")
  beta2: float = _key(0.95, "Adam's second decay")
  eps: float = _key(1e-8, "Adam's epsilon")
  moment_dtype: str = _key(
    'float32', 'moments are kept in: float32, or bfloat16 as V3 did'
  )
  weight_decay: float = _key(0.1, 'decoupled decay of matrices (not of norms)')
  clip_norm: float = _key(1.0, 'global gradient norm is clipped to this')
  muon_momentum: float = _key(0.95, 'decay of the momentum, muon only')
  muon_rms: float = _key(
    0.2, "root mean square of muon's updates, which AdamW's rate then fits"
  )
  ema_decay: float = _key(
    0.0, 'decay per step of averaged weights, kept on the host; 0: none'
  )
  ema_every: int = _key(10, 'steps between updates of averaged weights')

  def __post_init__(self):
    _require_choice('optim.name', self.name, OPTIMIZERS)
    _require_choice('optim.moment_dtype', self.moment_dtype, MOMENT_DTYPES)
    _check_positive(
      'optim',
      self,
      ('learning_rate', 'eps', 'clip_norm', 'muon_rms', 'ema_every'),
    )
    _check_not_negative(
      'optim',
      self,
      ('final_learning_rate', 'last_learning_rate', 'warmup_steps')
      + ('constant_tokens', 'decay_tokens', 'final_tokens', 'weight_decay'),
    )
    for name in ('beta1', 'beta2', 'muon_momentum', 'ema_decay'):
      value = getattr(self, name)
      _require(0 <= value < 1, f'optim.{name}={value} is not in [0, 1)')


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
  """How the computation is spread over devices."""

  mesh: str = _key('data:1', "axes and sizes, e.g. 'data:2,expert:-1'")

  def __post_init__(self):
    parse_mesh(self.mesh)


def parse_mesh(description: str) -> dict[str, int]:
  """Reads 'data:4' into {'data': 4}; -1 is 'the rest of the devices'.

  Raises:
    ConfigError: an axis is unknown or given twice, a size is no number, or
      several are -1.
  """
  sizes = {}
  for part in description.split(','):
    axis, _, size = part.partition(':')
    _require(
      axis in MESH_AXES,
      f'parallel.mesh={description!r}: unknown axis {axis!r}, known: '
      + ', '.join(MESH_AXES)
      + did_you_mean(axis, MESH_AXES),
    )
    _require(
      axis not in sizes
      and (size == '-1' or (size.isdecimal() and int(size) > 0)),
      f'parallel.mesh={description!r}: write each axis once as name:size, '
      "e.g. 'data:4'",
    )
    sizes[axis] = int(size)
  _require(
    list(sizes.values()).count(-1) <= 1,
    f'parallel.mesh={description!r}: only one axis can be -1, the rest of the '
    'devices',
  )
  return sizes


def mesh_sizes(
  description: str,
  num_devices: int,
  advice: str = 'or make others invisible (CUDA_VISIBLE_DEVICES)',
) -> dict[str, int]:
  """The size of every axis, 1 for those that aren't named.

  Args:
    description: as `parallel.mesh`.
    num_devices: what -1 is the rest of.
    advice: how to have another number of devices.

  Returns:
    {axis: size} in the order of MESH_AXES.

  Raises:
    ConfigError: it can't be read, or its devices are neither all that there are
      nor a single one.
  """
  sizes = parse_mesh(description)
  fixed = math.prod(size for size in sizes.values() if size > 0)
  for axis, size in sizes.items():
    if size == -1:
      _require(
        num_devices % fixed == 0,
        f'parallel.mesh={description!r}: {num_devices} devices are not '
        f'divisible by {fixed}, the product of the other axes',
      )
      sizes[axis] = num_devices // fixed
  wanted = math.prod(sizes.values())
  _require(
    wanted in (1, num_devices),
    f'parallel.mesh={description!r} has {wanted} devices, there are '
    f'{num_devices}; give one axis -1, the rest of them, {advice}',
  )
  return {axis: sizes.get(axis, 1) for axis in MESH_AXES}


def check_mesh(config: 'Config', sizes: dict[str, int] | None = None) -> None:
  """Refuses a mesh that this model or batch can't be spread over, in words.

  Args:
    config: the run.
    sizes: of every axis of MESH_AXES; None: those that parallel.mesh names, -1
      counted as 1 as long as the devices aren't known.

  Raises:
    ConfigError: something isn't divisible by the axes that split it.
  """
  if sizes is None:
    named = parse_mesh(config.parallel.mesh)
    sizes = {axis: max(named.get(axis, 1), 1) for axis in MESH_AXES}
  model, data = config.model, config.data
  parts = config.train.micro_batches

  def require(value: int, name: str, axes: tuple[str, ...], why: str):
    size = math.prod(sizes[axis] for axis in axes)
    split = ' times '.join(f'{axis}:{sizes[axis]}' for axis in axes)
    _require(
      value % size == 0,
      f'{name}={value} is not divisible by {split} of parallel.mesh, which '
      + why,
    )

  rows = data.batch_size // parts
  name = 'data.batch_size'
  if parts > 1:
    name += ' / train.micro_batches'
  require(rows, name, BATCH_AXES, 'split the batch')
  require(
    data.sequence_length, 'data.sequence_length', ('context',), 'splits it'
  )
  require(model.num_heads, 'model.num_heads', ('tensor',), 'splits heads')
  require(
    model.kv_heads, 'the number of key/value heads', ('tensor',), 'splits heads'
  )
  hidden = {}
  if model.num_plain_layers:
    hidden['model.mlp_dim'] = model.mlp_dim
  if model.uses_experts:
    hidden['model.expert_dim'] = model.expert_dim
    require(
      model.num_experts,
      'model.num_experts',
      ('expert_node', 'expert'),
      'split the experts',
    )
    require(
      model.num_expert_groups,
      'model.num_expert_groups',
      ('expert_node',),
      'may not split a routing group',
    )
  else:
    for axis in ('expert_node', 'expert'):
      _require(
        sizes[axis] == 1,
        f'parallel.mesh has {axis}:{sizes[axis]}, but model.ffn='
        f'{model.ffn!r} has no experts',
      )
  for name, width in hidden.items():
    require(width, name, ('tensor',), 'splits it')
  require(
    model.vocab_size,
    'model.vocab_size',
    ('pipeline',),
    'splits embedding and head',
  )
  layers = model.num_layers + model.mtp_depth
  _require(
    layers >= sizes['pipeline'],
    f'parallel.mesh has pipeline:{sizes["pipeline"]}, but the model has only '
    f'{layers} layers and MTP modules to make stages of',
  )
  if config.train.precision == 'fp8':
    _check_fp8_tiles(config, sizes, rows, hidden)


def _check_fp8_tiles(config, sizes, rows, hidden) -> None:
  """Refuses tiles of FP8 that would lie on two devices."""
  split = math.prod(sizes[axis] for axis in (*BATCH_AXES, 'context'))
  tokens = rows * config.data.sequence_length
  _require(
    split == 1 or tokens // split % FP8_TILE == 0,
    f'parallel.mesh={config.parallel.mesh!r} leaves {tokens / split:g} tokens '
    f'to a device, no multiple of {FP8_TILE}: tiles of FP8 would straddle '
    'devices; use fewer of them or more tokens',
  )
  for name, width in hidden.items():
    _require(
      sizes['tensor'] == 1 or width // sizes['tensor'] % FP8_TILE == 0,
      f'{name}={width} over tensor:{sizes["tensor"]} of parallel.mesh is no '
      f'multiple of {FP8_TILE}: tiles of FP8 would straddle devices',
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The training run."""

  steps: int = _key(235000, 'optimizer steps')
  micro_batches: int = _key(1, 'parts a batch is cut in; same update')
  ramp_tokens: int = _key(
    0, 'tokens over which the batch grows, by whole micro-batches; 0: no ramp'
  )
  ramp_micro_batches: int = _key(1, 'micro-batches of the first step of a ramp')
  seed: int = _key(0, 'initial weights')
  precision: str = _key(
    'bfloat16', 'float32, bfloat16, or fp8: bfloat16 with linear layers in FP8'
  )
  mtp_weight: float = _key(0.3, 'weight of the MTP loss (lambda)')
  mtp_late_weight: float = _key(0.1, 'the same after mtp_weight_tokens')
  mtp_weight_tokens: int = _key(
    0, 'tokens to which mtp_weight holds; 0: to the end'
  )
  balance_weight: float = _key(1e-4, 'sequence-wise balance loss (alpha)')
  z_loss_weight: float = _key(
    0.0, "weight of the squared log Z of each target's softmax; PaLM: 1e-4"
  )
  bias_update_rate: float = _key(1e-3, 'router bias speed per step (gamma)')
  bias_update_tokens: int = _key(
    0, 'tokens after which the router bias stands still; 0: never'
  )
  center_bias: bool = _key(
    False, 'subtract the mean from every move of the router bias'
  )
  nonfinite_limit: int = _key(
    3, 'steps in a row without a finite loss and gradient that end the run'
  )
  spike_deviations: float = _key(
    0.0,
    'a step is skipped whose loss or gradient norm is so many deviations above '
    'the mean of the last ones; 0: none is',
  )
  spike_window: int = _key(128, 'steps of that mean')
  init_from: str = _key('', 'checkpoint whose weights the run starts from')
  extend_context: bool = _key(
    False, "init_from's weights get this run's context and rotary embedding"
  )
  log_every: int = _key(10, 'steps between log lines')
  checkpoint_every: int = _key(1000, 'steps between checkpoints')
  keep_checkpoints: int = _key(2, 'newest checkpoints kept')
  price_per_device_hour: float = _key(0.0, 'dollars; 0: no price')
  compilation_cache: str = _key(
    'auto',
    "folder of compiled programs; 'auto': seekax/xla in $XDG_CACHE_HOME or "
    "~/.cache; '': none",
  )
  replay_every: int = _key(0, 'steps between two that are checked; 0: none')
  profile_steps: str = _key(
    '', "steps to trace into <workdir>/profile, '10' or '10:13'; '': none"
  )

  @property
  def compute_dtype(self) -> str:
    """Of all that isn't FP8, also of evaluation and samples."""
    return 'bfloat16' if self.precision == 'fp8' else self.precision

  def __post_init__(self):
    _require_choice('train.precision', self.precision, TRAIN_PRECISIONS)
    _require(
      0 <= self.seed <= MAX_SEED,
      f'train.seed={self.seed} is not in 0 to {MAX_SEED}',
    )
    _check_positive(
      'train',
      self,
      ('steps', 'micro_batches', 'log_every', 'checkpoint_every')
      + ('keep_checkpoints', 'ramp_micro_batches', 'nonfinite_limit')
      + ('spike_window',),
    )
    _check_not_negative(
      'train',
      self,
      ('mtp_weight', 'balance_weight', 'z_loss_weight', 'bias_update_rate')
      + ('price_per_device_hour', 'ramp_tokens', 'mtp_late_weight')
      + ('mtp_weight_tokens', 'bias_update_tokens', 'spike_deviations')
      + ('replay_every',),
    )
    _require(
      self.ramp_micro_batches <= self.micro_batches,
      f'train.ramp_micro_batches={self.ramp_micro_batches} is above '
      f'train.micro_batches={self.micro_batches}; a batch only grows',
    )
    _require(
      self.micro_batches <= MAX_MICRO_BATCHES,
      f'train.micro_batches={self.micro_batches} is above {MAX_MICRO_BATCHES}',
    )
    _, last_profiled = profiled_steps(self.profile_steps)
    _require(
      last_profiled <= self.steps,
      f'train.profile_steps={self.profile_steps!r} is past the last of '
      f'train.steps={self.steps}',
    )


def profiled_steps(description: str) -> tuple[int, int]:
  """Reads '10:13' into (10, 13), '10' into (10, 10), '' into (0, -1).

  Returns:
    First and last step, counted from 1 and both included; none for ''.

  Raises:
    ConfigError: it isn't of that form, or the steps can't be profiled.
  """
  if not description:
    return 0, -1
  words = description.split(':')
  _require(
    len(words) <= 2 and all(w.isascii() and w.isdecimal() for w in words),
    f"train.profile_steps={description!r}: write a step or two, '10' or "
    "'10:13', both ends included",
  )
  first, last = int(words[0]), int(words[-1])
  _require(
    first >= 2,
    f'train.profile_steps={description!r}: steps count from 1, and the first '
    'compiles the program; begin at 2 or later',
  )
  _require(
    first <= last,
    f'train.profile_steps={description!r} ends before it begins',
  )
  return first, last


@dataclasses.dataclass(frozen=True)
class Fp8Config:
  """FP8 of linear layers under train.precision=fp8 (V3, section 3.3).

  The defaults are V3's recipe, the rest what it is compared with.
  """

  tile_size: int = _key(128, 'n of tiles 1 x n and blocks n x n')
  scaling: str = _key('tiles', 'tiles and blocks; tensor: one scale per matrix')
  gradient_format: str = _key('e4m3', 'of gradients: e4m3 (V3) or e5m2')
  gradient_scaling: str = _key('tiles', 'of gradients: tiles (V3) or blocks')
  accumulation: str = _key(
    'float32',
    'float32; tensor_core: 14 bits within a tile; unpromoted: 14 bits; both '
    'are very slow',
  )
  products: str = _key(
    'auto',
    'auto; pallas: a kernel for NVIDIA GPUs from Hopper on; emulated: float32 '
    'products of rounded operands, on any device',
  )

  def __post_init__(self):
    for name, choices in (
      ('scaling', FP8_SCALINGS),
      ('gradient_format', FP8_GRADIENT_FORMATS),
      ('gradient_scaling', FP8_GRADIENT_SCALINGS),
      ('accumulation', FP8_ACCUMULATIONS),
      ('products', ('auto', *FP8_PRODUCTS)),
    ):
      _require_choice(f'fp8.{name}', getattr(self, name), choices)
    _check_positive('fp8', self, ('tile_size',))
    _require(
      self.scaling == 'tiles' or self.gradient_scaling == 'tiles',
      f'fp8.gradient_scaling={self.gradient_scaling} needs more than one scale '
      f'per matrix; set fp8.scaling=tiles',
    )
    _require(
      self.scaling == 'tensor' or self.accumulation != 'unpromoted',
      'fp8.accumulation=unpromoted adds up products of different scales; set '
      'fp8.scaling=tensor, or fp8.accumulation=tensor_core',
    )
    _require(
      self.accumulation != 'tensor_core' or self.tile_size % FP8_GROUP == 0,
      f'fp8.tile_size={self.tile_size} is no multiple of the {FP8_GROUP} '
      'products that fp8.accumulation=tensor_core adds at once',
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Held-out evaluation and samples during training."""

  every: int = _key(1000, 'steps between evaluations')
  batch_size: int = _key(8, 'windows scored at once')
  max_bytes: int = _key(0, 'held-out bytes per evaluation but the last; 0: all')
  sample_every: int = _key(1000, 'steps between samples')
  sample_tokens: int = _key(64, 'tokens per sample')
  sample_temperature: float = _key(0.7, '0 is greedy')
  prompts: tuple[str, ...] = _key(
    ('def main(', 'import os\n', 'class Node:\n'), 'fixed prompts for samples'
  )

  def __post_init__(self):
    _check_positive(
      'eval', self, ('every', 'batch_size', 'sample_every', 'sample_tokens')
    )
    _check_not_negative('eval', self, ('max_bytes', 'sample_temperature'))


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  optim: OptimConfig = OptimConfig()
  parallel: ParallelConfig = ParallelConfig()
  train: TrainConfig = TrainConfig()
  fp8: Fp8Config = Fp8Config()
  eval: EvalConfig = EvalConfig()

  def __post_init__(self):
    parts = self.train.micro_batches
    _require(
      self.data.batch_size % parts == 0,
      f'data.batch_size={self.data.batch_size} is not divisible by '
      f'train.micro_batches={parts}',
    )
    rows = self.data.batch_size // parts
    _require(
      not self.train.ramp_tokens or rows % self.data.num_shards == 0,
      f'train.ramp_tokens needs micro-batches ({rows} rows: data.batch_size / '
      f'train.micro_batches) divisible by data.num_shards='
      f'{self.data.num_shards}, so that every shard gives as many rows',
    )
    _require(
      self.data.sequence_length <= self.model.context_length,
      f'data.sequence_length={self.data.sequence_length} is above '
      f'model.context_length={self.model.context_length}',
    )
    _require(
      self.data.sequence_length > self.model.mtp_depth,
      f'data.sequence_length={self.data.sequence_length} leaves no target for '
      f'model.mtp_depth={self.model.mtp_depth}',
    )


# Group name -> its dataclass.
GROUPS = {field.name: field.type for field in dataclasses.fields(Config)}


# Fields that say how a model is computed or began, not what it computes.
_HOW = (
  'grouped_matmul',
  'attention_backend',
  'latent_attention_backend',
  'remat',
  'unroll_layers',
  'init_std',
)
_ONLY_EXPERTS = ('expert_dim', 'num_experts', 'num_shared_experts', 'router')
_ONLY_EXPERTS += ('experts_per_token', 'normalize_gates', 'routed_scale')
_ONLY_GROUPS = ('num_expert_groups', 'num_kept_groups', 'group_score')
_ONLY_LATENT = ('query_latent_dim', 'kv_latent_dim', 'latent_norm_eps')
_ONLY_SCALED = ('rope_factor', 'rope_original_length')
# Beginnings of what a context extension changes.
_POSITIONS = ('context_length', 'rope_theta', 'rope_scaling', 'rope_factor')
_POSITIONS += ('rope_original_length', 'yarn_', 'llama3_')


def _what(model: ModelConfig) -> dict[str, Any]:
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


# --- Whole runs, as ml_collections sees them. ---------------------------------


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
  """The config as nested dicts in which every key stands."""
  return dataclasses.asdict(config)


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
  """The config as a locked ConfigDict in which every key stands."""
  return ml_collections.ConfigDict(to_dict(config)).lock()


def from_config_dict(config: ml_collections.ConfigDict) -> Config:
  """Validates a ConfigDict into dataclasses.

  Raises:
    ConfigError: a group or key is unknown, or a value can't work.
  """
  return from_dict(config.to_dict())


def from_dict(values: dict[str, Any]) -> Config:
  """Validates a nested dict (as in run.json) into dataclasses.

  Raises:
    ConfigError: a group or key is unknown, or a value can't work.
  """
  groups = {}
  for name, entries in values.items():
    if name not in GROUPS:
      raise ConfigError(
        f'unknown config group {name!r}' + did_you_mean(name, GROUPS)
      )
    kind = GROUPS[name]
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in entries.items():
      _require(
        key in known,
        f'unknown config key {name}.{key}' + did_you_mean(key, known),
      )
      _check_type(f'{name}.{key}', value, known[key].default)
    groups[name] = kind(
      **{k: _restore(v, known[k].default) for k, v in entries.items()}
    )
  return Config(**groups)


def _restore(value: Any, default: Any) -> Any:
  if isinstance(default, tuple):
    return tuple(value)
  return float(value) if isinstance(default, float) else value


def _check_type(name: str, value: Any, default: Any) -> None:
  wanted = type(default)
  ok = isinstance(value, wanted) and isinstance(value, bool) == isinstance(
    default, bool
  )
  if wanted is float:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
  if wanted is tuple:
    item = type(default[0])
    is_list = isinstance(value, (list, tuple))
    strange = [x for x in value if not isinstance(x, item)] if is_list else []
    _require(
      not strange,
      f'{name}={value!r} holds {strange[:1]}, which is no {item.__name__}',
    )
    ok = is_list
  _require(
    ok, f'{name}={value!r} is a {type(value).__name__}, not a {wanted.__name__}'
  )
