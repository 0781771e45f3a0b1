"""Time of a training step: a roofline of arithmetic, memory and network.

A micro-batch passes a stage of mean size in three chunks: forward (F), the
gradient of the inputs (I) with what is computed again, and the gradient of the
weights (W). A chunk takes

  max(product FLOP / (peak x efficiency), weight bytes / memory)
  + attention FLOP / (bfloat16 peak x its efficiency)
  + passes x intermediate bytes / memory,

W also reads and writes the float32 gradients. The exchange of tokens with
experts takes the longer of network and links. In 1F1B and ZB1P it is added to F
and I; in DualPipe's overlapped pairs the longer of arithmetic and exchange
counts, and only the pairs do overlap. The pipeline's bubble is the closed form
of schedules.py times a stretch. Then come the sums over data ranks and the
optimizer. Tensor-parallel gathers are added, never hidden; pipeline sends hide
unless they take longer than the chunk.

`Constants` holds every number that isn't of a data sheet or of the
architecture, and says where it is from. Fitted ones: calibration.py.
"""

import dataclasses

from seekax.config import ModelConfig
from seekax.planning import flops, memory, parameters, schedules, traffic
from seekax.planning.hardware import Device
from seekax.planning.layout import Layout

_FLOAT32 = 4.0
# Elementwise passes of F, I and W, relative to F; in I both sides are read.
_PASSES = {'forward': 1.0, 'backward_input': 2.0, 'backward_weight': 1.0}
# Attention's backward does five products where forward does two.
_ATTENTION_BACKWARD = 2.5


@dataclasses.dataclass(frozen=True)
class Constants:
  """What the model of time assumes.

  Attributes:
    network_efficiency: of the network's peak. Published: the exchange of V3
      gets above 40 of 50 GB/s (arXiv 2505.09343).
    link_efficiency: of the links' peak. Published: 160 of 200 GB/s
      (DeepSeek-V3, section 3.2.2).
    memory_efficiency: of the memory's peak. Assumed; FlashMLA publishes 3,000
      of 3,350 GB/s on an H800.
    attention_efficiency: of the bfloat16 peak, forward and backward. Assumed;
      FlashAttention-3's best forward pass on an H100 is published as 0.75.
    expert_efficiency: of a precision's peak, in the products of models with
      experts. Fitted on the phases of V3's step (arXiv 2505.09343, table 4)
      and Megatron's bfloat16 row, together with `passes`; it is what halves
      with the precision, more than a kernel reaches, and no measure of kernels.
    passes: over all intermediate bytes of a layer per F. Fitted; it holds
      everything that is not a product: norms, permutations, quantization,
      launches.
    dense_efficiency: as `expert_efficiency`, in dense models. Fitted on the
      hours of Llama 3.1 405B, so that it also holds the time a run stood still.
    overlap_slowdown: of a pair over its arithmetic alone. Fitted on the phases.
    bubble_stretch: bubble over its closed form. Fitted on the phases; it holds
      uneven stages and transfers.
  """

  network_efficiency: float = 0.8
  link_efficiency: float = 0.8
  memory_efficiency: float = 0.8
  attention_efficiency: float = 0.5
  expert_efficiency: float = 0.9154
  passes: float = 5.240
  dense_efficiency: float = 0.7739
  overlap_slowdown: float = 1.0582
  bubble_stretch: float = 1.8650


# Printed by experiments/deepseek_v3/planner_errors.py --fit.
FITTED = Constants()


@dataclasses.dataclass(frozen=True)
class Run:
  """What is trained, on what.

  Attributes:
    model: the architecture.
    device: of which all ranks are.
    layout: how they share the work.
    batch_size: sequences per step.
    sequence_length: positions.
    precision: as train.precision.
    moment_dtype: as optim.moment_dtype.
    split_sequences: data ranks that share a sequence for want of memory, beside
      the layout's context ranks; each then holds that much less of it.
    flushes: how often per step the pipeline runs empty.
  """

  model: ModelConfig
  device: Device
  layout: Layout
  batch_size: int
  sequence_length: int
  precision: str = 'bfloat16'
  moment_dtype: str = 'float32'
  split_sequences: int = 1
  flushes: int = 1

  @property
  def fp8(self) -> bool:
    return self.precision == 'fp8'

  @property
  def positions(self) -> float:
    """Positions of a sequence that a device computes."""
    return self.sequence_length / self.layout.context / self.split_sequences

  @property
  def chunk_tokens(self) -> float:
    """Tokens of a micro-batch on a device, its tensor ranks counted as one."""
    return self.layout.micro_batch * self.positions

  @property
  def micro_batches(self) -> int:
    batch = self.batch_size * self.split_sequences
    return self.layout.micro_batches(batch)

  @property
  def step_tokens(self) -> int:
    return self.batch_size * self.sequence_length


@dataclasses.dataclass(frozen=True)
class StepTime:
  """Seconds of a step by phase, of a mean rank (as arXiv 2505.09343).

  Attributes:
    forward: F outside pairs, its exchange included.
    backward: B and I outside pairs, their exchange included.
    weight: W where it is apart.
    pair: overlapped F and B.
    bubble: of the pipeline.
    optimizer: sums over data ranks, the update, gathered parameters.
    exchange: of tokens with experts, as far as it isn't hidden; part of the
      above.
    tensor: of gathers between tensor ranks; part of the above.
    tokens: of the step.
    devices: that made it.
  """

  forward: float
  backward: float
  weight: float
  pair: float
  bubble: float
  optimizer: float
  exchange: float
  tensor: float
  tokens: int
  devices: int

  @property
  def seconds(self) -> float:
    return (
      self.forward
      + self.backward
      + self.weight
      + self.pair
      + self.bubble
      + self.optimizer
    )

  @property
  def tokens_per_second_per_device(self) -> float:
    return self.tokens / self.seconds / self.devices


def peak(device: Device, precision: str) -> float:
  """FLOP/s of products in a precision; what has no FP8 falls to bfloat16.

  float32 products run at half of bfloat16's rate (TF32), on a CPU at its one.
  """
  if precision == 'fp8' and device.fp8_flops:
    return device.fp8_flops
  if precision == 'float32' and device.network_bandwidth:
    return device.peak_flops / 2
  return device.peak_flops


@dataclasses.dataclass(frozen=True)
class Chunks:
  """Seconds of a micro-batch on one stage, arithmetic alone and the rest."""

  forward: float
  backward_input: float
  backward_weight: float
  exchange: float  # of tokens with experts, in F; again in I
  gathers: float  # of tensor and context ranks, in F; again in I

  @property
  def arithmetic(self) -> float:
    return self.forward + self.backward_input + self.backward_weight


def chunks(run: Run, constants: Constants = FITTED) -> Chunks:
  """Times of F, I and W of one micro-batch on a stage of mean size."""
  model, layout, device = run.model, run.layout, run.device
  ranks = layout.pipeline * layout.tensor
  tokens = run.chunk_tokens
  share = tokens / ranks
  counts = parameters.count_parameters(model)
  layers = model.num_layers + model.mtp_depth
  head_uses = 1 + model.mtp_depth
  products = counts.activated_without_embedding + counts.mtp_activated
  head = counts.head * head_uses
  attention = layers * flops.attention_flops_per_token(
    model, run.sequence_length
  )
  efficiency = (
    constants.expert_efficiency
    if model.uses_experts
    else constants.dense_efficiency
  )
  # The head stays in bfloat16 (DeepSeek-V3, section 3.3.1).
  head_precision = 'bfloat16' if run.fp8 else run.precision
  product_seconds = (
    2
    * share
    * (
      (products - head) / peak(device, run.precision)
      + head / peak(device, head_precision)
    )
    / efficiency
  )
  bandwidth = device.memory_bandwidth * constants.memory_efficiency
  stage = memory.stage_parameters(model, layout, largest=False).total
  weight_bytes = stage * (1.0 if run.fp8 else 2.0)
  product_seconds = max(product_seconds, weight_bytes / bandwidth)
  attention_rate = device.peak_flops * constants.attention_efficiency
  attention_seconds = share * attention / attention_rate
  everything = memory.model_activation_bytes_per_token(model, 'none', False)
  pass_seconds = constants.passes * share * everything / bandwidth
  again = _computed_again(model, layout.remat)
  forward = (
    product_seconds + attention_seconds + pass_seconds * _PASSES['forward']
  )
  backward_input = (
    product_seconds * (1 + again)
    + attention_seconds * _ATTENTION_BACKWARD
    + pass_seconds * _PASSES['backward_input']
    + (attention_seconds + pass_seconds if layout.remat == 'full' else 0.0)
  )
  backward_weight = (
    product_seconds
    + pass_seconds * _PASSES['backward_weight']
    + 2 * _FLOAT32 * stage / bandwidth
  )
  return Chunks(
    forward=forward,
    backward_input=backward_input,
    backward_weight=backward_weight,
    exchange=_exchange_seconds(run, constants),
    gathers=_gather_seconds(run, constants, forward),
  )


def _computed_again(model: ModelConfig, remat: str) -> float:
  """Products of the forward pass done again, as a share of them."""
  if remat == 'full':
    return 1.0
  if remat == 'none' or model.attention != 'mla':
    return 0.0
  latent = model.kv_latent_dim * (model.nope_head_dim + model.value_head_dim)
  latent += model.query_latent_dim * model.qk_head_dim
  active = parameters.count_parameters(model).activated_without_embedding
  return model.num_layers * model.num_heads * latent / active


def send_seconds(
  sent: traffic.Bytes, device: Device, constants: Constants
) -> float:
  """The longer of network and links, which work at the same time."""
  seconds = 0.0
  if sent.network and device.network_bandwidth:
    rate = device.network_bandwidth * constants.network_efficiency
    seconds = sent.network / rate
  if sent.link and device.link_bandwidth:
    rate = device.link_bandwidth * constants.link_efficiency
    seconds = max(seconds, sent.link / rate)
  return seconds


def _exchange_seconds(run: Run, constants: Constants) -> float:
  model, layout = run.model, run.layout
  if not model.uses_experts or layout.experts_over == 1:
    return 0.0
  fp8 = run.fp8 and layout.fp8_dispatch
  dispatch, combine = traffic.exchange_per_token(model, layout, fp8)
  layers = model.num_expert_layers + model.mtp_depth
  # Tensor ranks send their share of the tokens.
  share = run.chunk_tokens * layers / layout.pipeline / layout.tensor
  return send_seconds((dispatch + combine) * share, run.device, constants)


def _gather_seconds(run: Run, constants: Constants, arithmetic: float) -> float:
  model, layout = run.model, run.layout
  layers = (model.num_layers + model.mtp_depth) / layout.pipeline
  seconds = 0.0
  if layout.tensor > 1:
    sent = traffic.tensor_per_token(model, layout)
    seconds += send_seconds(
      sent * (run.chunk_tokens * layers), run.device, constants
    )
  if run.positions < run.sequence_length:
    sent = traffic.context_per_token(model, run.sequence_length, run.positions)
    seconds += send_seconds(
      sent * (run.chunk_tokens * layers), run.device, constants
    )
  if layout.fsdp > 1:
    stage = memory.stage_parameters(model, layout, largest=False).total
    gather = send_seconds(
      traffic.fsdp_per_pass(stage, layout), run.device, constants
    )
    # Gathers run ahead of the layers that need them.
    # Gathers run ahead of the layers that need them.
    seconds += max(gather - arithmetic, 0.0)
  return seconds


def optimizer_seconds(run: Run, constants: Constants = FITTED) -> float:
  """Gradients summed over data ranks, the update, parameters gathered."""
  layout = run.layout
  stage = memory.stage_parameters(run.model, layout, largest=False)
  held = schedules.stages_per_rank(layout.schedule)
  sent = traffic.data_parallel_per_step(
    held * stage.plain, held * stage.experts, layout
  )
  own = stage.plain / layout.data_ranks
  own += stage.experts / (layout.data * layout.fsdp)
  moment = 2.0 if run.moment_dtype == 'bfloat16' else 4.0
  # Read and write the master and both moments, read the gradient.
  update = own * (2 * _FLOAT32 + 4 * moment + _FLOAT32)
  bandwidth = run.device.memory_bandwidth * constants.memory_efficiency
  return send_seconds(sent, run.device, constants) + update / bandwidth


def predict(run: Run, constants: Constants = FITTED) -> StepTime:
  """Seconds of one step, by phase.

  Args:
    run: which `layout.problem` finds nothing wrong with.
    constants: see `Constants`.
  """
  layout = run.layout
  chunk = chunks(run, constants)
  send = send_seconds(
    traffic.pipeline_per_token(run.model, layout)
    * (run.chunk_tokens / layout.tensor),
    run.device,
    constants,
  )
  arithmetic_pair = chunk.arithmetic * constants.overlap_slowdown
  pair = max(arithmetic_pair, 2 * chunk.exchange, 2 * send) + 2 * chunk.gathers
  moved = chunk.exchange + chunk.gathers
  costs = schedules.Costs(
    forward=max(chunk.forward + moved, send),
    backward_input=max(chunk.backward_input + moved, send),
    backward_weight=chunk.backward_weight,
    pair=pair,
  )
  count = run.micro_batches
  if layout.schedule == 'dualpipe' and layout.pipeline > 1:
    counts = schedules.dual_counts(layout.pipeline, count)
    once = schedules.closed_form_bubble('dualpipe', layout.pipeline, costs)
    exposed = (counts['F'] + counts['B'] + counts['I']) * chunk.exchange
    exposed += counts['FB'] * max(pair - 2 * chunk.gathers - arithmetic_pair, 0)
  elif layout.overlap:  # Forward and backward of two micro-batches in 1F1B.
    counts = {'F': 0.0, 'B': 0.0, 'I': 0.0, 'W': 0.0, 'FB': float(count)}
    once = (layout.pipeline - 1) * pair / layout.virtual_stages
    exposed = count * max(pair - 2 * chunk.gathers - arithmetic_pair, 0)
  else:
    apart = layout.schedule == 'zb1p' and layout.pipeline > 1
    counts = {'F': count, 'B': 0 if apart else count, 'FB': 0.0}
    counts |= dict.fromkeys(('I', 'W'), count if apart else 0)
    once = schedules.closed_form_bubble(layout.schedule, layout.pipeline, costs)
    once /= layout.virtual_stages
    exposed = 2 * count * chunk.exchange
  return StepTime(
    forward=counts['F'] * costs.forward,
    backward=counts['B'] * costs.backward + counts['I'] * costs.backward_input,
    weight=counts['W'] * costs.backward_weight,
    pair=counts['FB'] * costs.pair,
    bubble=once * run.flushes * constants.bubble_stretch
    if layout.pipeline > 1
    else 0.0,
    optimizer=optimizer_seconds(run, constants),
    exchange=exposed,
    tensor=2 * count * chunk.gathers,
    tokens=run.step_tokens,
    devices=layout.devices,
  )
