"""Bytes in closed form: the key/value cache, and a training step by parts."""

import dataclasses
import math

from seekax.configuration.model import ModelConfig
from seekax.planning import hardware, parameters, schedules
from seekax.planning.hardware import BFLOAT16, FLOAT32, FP8
from seekax.planning.layout import Layout


def cache_elements_per_token(model: ModelConfig) -> int:
  """Values cached per token over all layers (DeepSeek-V2, table 1).

  MLA keeps the latent and one rotary key for all heads (C + R per layer), the
  others every key/value head (H_kv x (K + R + U) per layer).
  """
  if model.attention == 'mla':
    per_layer = model.kv_latent_dim + model.rope_head_dim
  else:
    per_layer = model.kv_heads * (model.qk_head_dim + model.value_head_dim)
  return model.num_layers * per_layer


def expanded_cache_elements_per_token(model: ModelConfig) -> int:
  """Values per token if the keys and values of all computed heads were kept.

  That is what MLA saves: a cache of expanded heads is 71 times as large in V3.
  The same as `cache_elements_per_token` for other kinds of attention.
  """
  width = model.qk_head_dim + model.value_head_dim
  return model.num_layers * model.kv_heads * width


def cache_bytes_per_token(
  model: ModelConfig, bytes_per_element: float = 2.0
) -> float:
  """Bytes cached per token over all layers; 70,272 for V3 in bfloat16.

  Args:
    model: the architecture. MTP modules cache nothing here: they are left out.
    bytes_per_element: 2 for bfloat16, 0.75 for six bits.

  Returns:
    Bytes per token.
  """
  return cache_elements_per_token(model) * bytes_per_element


# --- Training. ----------------------------------------------------------------

# 12 bits for what the linear map after attention keeps under FP8 (DeepSeek-V3,
# section 3.3.3).
_E5M6 = 1.5
_MOMENTS = 2
# Rows of logits that cross-entropy holds at once at most, in float32: the
# largest chunk of ops/cross_entropy.py.
_LOGIT_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
  """Bytes on the device that holds most."""

  parameters: float
  optimizer: float
  gradients: float
  activations: float
  temporaries: float

  @property
  def total(self) -> float:
    return (
      self.parameters
      + self.optimizer
      + self.gradients
      + self.activations
      + self.temporaries
    )


@dataclasses.dataclass(frozen=True)
class StageParameters:
  """Parameters of one pipeline stage on one device, fsdp not applied."""

  plain: float  # that every data rank holds
  experts: float  # routed, cut over expert ranks

  @property
  def total(self) -> float:
    return self.plain + self.experts


def stage_parameters(
  model: ModelConfig, layout: Layout, largest: bool
) -> StageParameters:
  """Parameters of a pipeline rank's stage, cut over tensor and expert ranks.

  Vocabulary tables are cut over the pipeline. MTP modules are layers like
  others. A stage that DualPipe holds twice is counted once.

  Args:
    model: the architecture.
    layout: the ranks.
    largest: the stage with most layers; otherwise the mean of all stages.
  """
  counts = parameters.count_parameters(model)
  expert_layers = model.num_expert_layers
  if model.uses_experts:
    expert_layers += model.mtp_depth
  plain_layers = model.num_layers + model.mtp_depth - expert_layers
  common = counts.attention + counts.block_norms
  outside = counts.router + counts.shared_expert
  tables = counts.embedding + counts.head + counts.final_norm
  block = counts.expert_block if model.uses_experts else counts.plain_block
  joint = counts.mtp - model.mtp_depth * block  # Projections and norms.
  if largest:
    layers = math.ceil((expert_layers + plain_layers) / layout.pipeline)
    here = min(layers, expert_layers)
    plain = layers * common + here * outside
    plain += (layers - here) * counts.dense_ffn + joint
    routed = here * model.num_experts * counts.routed_expert
  else:
    plain = (expert_layers + plain_layers) * common + expert_layers * outside
    plain = (plain + plain_layers * counts.dense_ffn + joint) / layout.pipeline
    routed = expert_layers * model.num_experts * counts.routed_expert
    routed /= layout.pipeline
  plain += tables / layout.pipeline
  return StageParameters(plain / layout.tensor, routed * layout.experts_share)


def activation_bytes_per_token(
  model: ModelConfig, remat: str, fp8: bool, routed: bool
) -> float:
  """What one layer keeps of a token for its gradients.

  Args:
    model: the architecture.
    remat: 'none' keeps the input of every product and of the attention, norms
      and SwiGLUs included; 'paper' leaves out what DeepSeek-V3 computes again
      (section 3.2.3: norms, MLA's up-projections, SwiGLU); 'full' keeps the
      layer's input.
    fp8: the inputs of FFNs and the attention's output are kept in few bits.
    routed: a layer of experts, or one with a dense FFN.

  Returns:
    Bytes, before they are cut over tensor and context ranks.
  """
  width = model.embed_dim
  if remat == 'full':
    return width * BFLOAT16
  stored = FP8 if fp8 else BFLOAT16
  if routed:
    copies = model.experts_per_token + model.num_shared_experts
    hidden = copies * model.expert_dim
  else:
    copies, hidden = 1, model.mlp_dim
  # Residual stream before attention and before the FFN; the attention's output;
  # inputs of the FFN's products, gate and up.
  kept = 2 * width * BFLOAT16
  kept += model.num_heads * model.value_head_dim * (_E5M6 if fp8 else BFLOAT16)
  kept += (copies * width + 2 * hidden) * stored
  heads = model.num_heads * model.qk_head_dim
  heads += model.kv_heads * (model.qk_head_dim + model.value_head_dim)
  if model.attention == 'mla':
    latents = model.query_latent_dim + model.kv_latent_dim + model.rope_head_dim
    kept += latents * BFLOAT16
    if remat == 'none':
      kept += heads * BFLOAT16
  else:
    kept += heads * BFLOAT16
  if remat == 'none':
    kept += 2 * width * BFLOAT16 + hidden * stored
    if routed:  # Each expert's output, which the gates multiply.
      kept += copies * width * BFLOAT16
  return kept


def model_activation_bytes_per_token(
  model: ModelConfig, remat: str, fp8: bool
) -> float:
  """`activation_bytes_per_token` of all layers, MTP modules included."""
  per_plain, per_routed = (
    activation_bytes_per_token(model, remat, fp8, routed)
    for routed in (False, True)
  )
  plain, routed = model.num_plain_layers, model.num_expert_layers
  if model.uses_experts:
    routed += model.mtp_depth
  else:
    plain += model.mtp_depth
  return plain * per_plain + routed * per_routed


def training_memory(
  model: ModelConfig,
  layout: Layout,
  batch_size: int,
  sequence_length: int,
  precision: str,
  moment_dtype: str,
  split_sequences: int = 1,
  gradient: float = FLOAT32,
) -> TrainingMemory:
  """Bytes of a training step on the device that holds most.

  Compute weights are bfloat16 copies (float32 under train.precision=float32)
  of float32 masters, which lie with the two moments where ZeRO puts them.

  Args:
    model: the architecture.
    layout: the ranks; of `schedule` depends how many micro-batches are alive.
    batch_size: sequences per step.
    sequence_length: positions.
    precision: as train.precision.
    moment_dtype: as optim.moment_dtype.
    split_sequences: data ranks that share a sequence beside the context ranks.
    gradient: bytes of a gradient as it is added up.

  Returns:
    Bytes. Temporaries are a chunk of logits, the buffers of one exchange, what
    the gradients of one layer hold and, where ranks share a sequence, one
    layer's keys and values of the others' positions; they are the roughest
    part.
  """
  fp8 = precision == 'fp8'
  stage = stage_parameters(model, layout, largest=True)
  # DualPipe holds two stages, of which one is also another rank's.
  held = schedules.stages_per_rank(layout.schedule)
  value = FLOAT32 if precision == 'float32' else BFLOAT16
  moment = FLOAT32 if moment_dtype == 'float32' else BFLOAT16
  per_parameter = FLOAT32 + _MOMENTS * moment
  own = stage.plain / layout.data_ranks
  own += stage.experts / (layout.data * layout.fsdp)
  positions = sequence_length / layout.context / split_sequences
  tokens = layout.micro_batch * positions
  layers = model.num_layers + model.mtp_depth
  deepest = math.ceil(layers / layout.pipeline)
  per_layer = max(
    activation_bytes_per_token(model, layout.remat, fp8, routed)
    for routed in {bool(model.num_expert_layers), not model.num_plain_layers}
  )
  alive = live_micro_batches(layout, batch_size * split_sequences)
  everything = max(
    activation_bytes_per_token(model, 'none', False, routed)
    for routed in {bool(model.num_expert_layers), not model.num_plain_layers}
  )
  exchange = 0.0
  if model.uses_experts and layout.experts_over > 1:
    rows = layout.exchange_slack * tokens * model.experts_per_token
    exchange = 2 * rows * model.embed_dim * BFLOAT16
    if layout.whole_experts:
      exchange /= layout.tensor
  others = layout.micro_batch * (sequence_length - positions)
  logits = min(tokens, _LOGIT_ROWS) * model.vocab_size * FLOAT32
  return TrainingMemory(
    parameters=held * stage.total * value / layout.fsdp,
    optimizer=own * per_parameter,
    gradients=held * stage.total * gradient / layout.fsdp,
    activations=alive * deepest * tokens * per_layer / layout.tensor,
    temporaries=2 * tokens * everything / layout.tensor
    + exchange
    + 2 * others * _gathered_bytes(model, layout)
    + logits / layout.tensor,
  )


def _gathered_bytes(model: ModelConfig, layout: Layout) -> float:
  """Bytes per position of another rank in one layer: gathered, and expanded.

  MLA's latents are gathered and expanded to all heads of a rank. A kernel that
  expands them block by block would need less; the plan doesn't assume one.
  """
  heads = model.kv_heads * (model.qk_head_dim + model.value_head_dim)
  came = 0
  if model.attention == 'mla':
    came = model.kv_latent_dim + model.rope_head_dim
  return (came + heads / layout.tensor) * BFLOAT16


def room(device: hardware.Device) -> float:
  """Bytes of a device that a plan may use."""
  return device.memory_bytes - hardware.RESERVED_BYTES


def live_micro_batches(layout: Layout, batch_size: int) -> float:
  """Micro-batches alive on a rank at most, each of one rank's layers."""
  count = layout.micro_batches(batch_size)
  if layout.pipeline == 1:
    return 1
  alive = schedules.closed_form_activations(layout.schedule, layout.pipeline)
  if layout.virtual_stages > 1:  # Interleaved 1F1B, arXiv 2104.04473.
    alive *= 1 + (layout.pipeline - 1) / (
      layout.pipeline * layout.virtual_stages
    )
  return min(alive, count)
