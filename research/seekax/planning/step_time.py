"""Time of a training step: a roofline of arithmetic, memory and network.

A micro-batch passes a stage of mean size in three chunks: forward (F), the
gradient of the inputs (I) with what is computed again, and the gradient of the
weights (W). A chunk takes

  max(product FLOP / (peak x efficiency), weight bytes / memory)
  + attention FLOP / (bfloat16 peak x its efficiency)
  + passes x intermediate bytes / memory,

and W also reads and writes the summed gradients. The exchange of tokens with
experts takes the longer of network and links. In 1F1B and ZB1P it is added to F
and I; in DualPipe's overlapped pairs the longer of arithmetic and exchange
counts, and nothing but the pairs overlaps. The pipeline's bubble is the closed
form of schedules.py times a stretch. Then come the sums over data ranks and the
optimizer. Gathers of tensor and context ranks are added, never hidden; fsdp's
gathers and scatters run beside their chunk, and the time by which they outlast
it is added; pipeline sends hide unless they take longer than the chunk. Where
remat is 'full' the forward pass is done again with its exchange and gathers.

Every number that isn't the architecture's stands in hardware.py with its
source. experiments/planner/fit.py finds the fitted ones.
"""

import dataclasses

from seekax.configuration.model import ModelConfig
from seekax.planning import flops, memory, parameters, schedules, traffic
from seekax.planning.hardware import (
  ATTENTION_BACKWARD,
  BFLOAT16,
  Constants,
  Device,
  FITTED,
  FLOAT32,
  PASSES,
  TF32_SHARE,
)
from seekax.planning.run import Run


@dataclasses.dataclass(frozen=True)
class StepTime:
  """Seconds of a step by phase on a mean rank (counted as in arXiv 2505.09343).

  Attributes:
    forward: forward chunks (F) outside pairs, with their exchange.
    backward: backward chunks (B, or I without W) outside pairs, with their
      exchange.
    weight: gradients of the weights (W) where they are chunks of their own.
    pair: pairs of an F and a B that overlap.
    bubble: the pipeline's bubble.
    optimizer: sums over data ranks, the update, gathered parameters.
    exchange: the exchange of tokens with experts that isn't hidden; like the
      next two it is part of the phases above, without the bubble.
    tensor: gathers between tensor and context ranks.
    fsdp: fsdp's gathers and scatters that aren't hidden.
    hidden: exchanges, gathers and scatters that arithmetic hides; they are part
      of no phase.
    tokens: tokens of the step.
    devices: devices that make the step.
  """

  forward: float
  backward: float
  weight: float
  pair: float
  bubble: float
  optimizer: float
  exchange: float
  tensor: float
  fsdp: float
  hidden: float
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
  """FLOP/s of products in a precision; a device without FP8 uses bfloat16.

  float32 products run at half of bfloat16's rate (TF32); a CPU has one rate.
  """
  if precision == 'fp8' and device.fp8_flops:
    return device.fp8_flops
  if precision == 'float32' and device.network_bandwidth:
    return device.peak_flops * TF32_SHARE
  return device.peak_flops


@dataclasses.dataclass(frozen=True)
class Chunks:
  """Seconds of a micro-batch on one stage.

  Attributes:
    forward: arithmetic of a forward chunk (F).
    backward_input: arithmetic of the gradient of the inputs (I).
    backward_weight: arithmetic of the gradient of the weights (W).
    exchange: exchange of tokens with experts, in F.
    gathers: gathers of tensor and context ranks, in F.
    repeats: how often I does both: for gradients, and for what is done again.
    fsdp_forward: fsdp's gathers of weights in the forward pass.
    fsdp_backward: fsdp's gathers of weights and scatters of gradients in the
      backward pass.
  """

  forward: float
  backward_input: float
  backward_weight: float
  exchange: float
  gathers: float
  repeats: int
  fsdp_forward: float
  fsdp_backward: float

  @property
  def arithmetic(self) -> float:
    return self.forward + self.backward_input + self.backward_weight

  @property
  def fsdp_in_sight(self) -> tuple[float, float]:
    """What F, and I with W, are too short to hide."""
    return (
      max(self.fsdp_forward - self.forward, 0.0),
      max(self.fsdp_backward - self.backward_input - self.backward_weight, 0.0),
    )


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
    product_seconds + attention_seconds + pass_seconds * PASSES['forward']
  )
  backward_input = (
    product_seconds * (1 + again)
    + attention_seconds * ATTENTION_BACKWARD
    + pass_seconds * PASSES['backward_input']
    + (attention_seconds + pass_seconds if layout.remat == 'full' else 0.0)
  )
  backward_weight = (
    product_seconds
    + pass_seconds * PASSES['backward_weight']
    + 2 * run.gradient * stage / bandwidth
  )
  shared = [
    send_seconds(sent, device, constants)
    for sent in traffic.fsdp_per_micro_batch(
      stage, layout, device.domain_size, run.gradient
    )
  ]
  return Chunks(
    forward=forward,
    backward_input=backward_input,
    backward_weight=backward_weight,
    exchange=_exchange_seconds(run, constants),
    gathers=_gather_seconds(run, constants),
    repeats=2 if layout.remat == 'full' else 1,
    fsdp_forward=shared[0],
    fsdp_backward=shared[1],
  )


def _computed_again(model: ModelConfig, remat: str) -> float:
  """The share of the forward pass's products that is computed again."""
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
  """Seconds of the exchange of tokens with experts in F."""
  model, layout = run.model, run.layout
  if not model.uses_experts or layout.experts_over == 1:
    return 0.0
  fp8 = run.fp8 and layout.fp8_dispatch
  dispatch, combine = traffic.exchange_per_token(
    model, layout, fp8, run.device.domain_size
  )
  layers = model.num_expert_layers + model.mtp_depth
  share = run.chunk_tokens * layers / layout.pipeline
  share *= traffic.senders_per_token(layout) / layout.tensor
  return send_seconds((dispatch + combine) * share, run.device, constants)


def _gather_seconds(run: Run, constants: Constants) -> float:
  """Seconds of the gathers between tensor and context ranks in F."""
  model, layout, device = run.model, run.layout, run.device
  layers = (model.num_layers + model.mtp_depth) / layout.pipeline
  seconds = 0.0
  if layout.tensor > 1:
    sent = traffic.tensor_per_token(model, layout)
    seconds += send_seconds(
      sent * (run.chunk_tokens * layers), device, constants
    )
  if run.positions < run.sequence_length:
    sent = traffic.context_per_token(
      model, run.sequence_length, run.positions, layout, device.domain_size
    )
    seconds += send_seconds(
      sent * (run.chunk_tokens * layers), device, constants
    )
  return seconds


def optimizer_seconds(run: Run, constants: Constants = FITTED) -> float:
  """Seconds to sum gradients over data ranks, update, and gather parameters."""
  layout = run.layout
  stage = memory.stage_parameters(run.model, layout, largest=False)
  held = schedules.stages_per_rank(layout.schedule)
  sent = traffic.data_parallel_per_step(
    held * stage.plain,
    held * stage.experts,
    layout,
    run.device.domain_size,
    run.gradient,
  )
  own = stage.plain / layout.data_ranks
  own += stage.experts / (layout.data * layout.fsdp)
  moment = BFLOAT16 if run.moment_dtype == 'bfloat16' else FLOAT32
  # Read and write the master and both moments, read the gradient.
  update = own * (2 * FLOAT32 + 4 * moment + run.gradient)
  bandwidth = run.device.memory_bandwidth * constants.memory_efficiency
  return send_seconds(sent, run.device, constants) + update / bandwidth


def predict(run: Run, constants: Constants = FITTED) -> StepTime:
  """Seconds of one step, by phase.

  Args:
    run: a run that `layout.problem` finds nothing wrong with.
    constants: what the model of time assumes.
  """
  layout = run.layout
  chunk = chunks(run, constants)
  send = send_seconds(
    traffic.pipeline_per_token(run.model, layout, run.device.domain_size)
    * (run.chunk_tokens / layout.tensor),
    run.device,
    constants,
  )
  passes = 1 + chunk.repeats  # Passes that exchange and gather, over F and I.
  fsdp_forward, fsdp_backward = chunk.fsdp_in_sight
  fsdp = fsdp_forward + fsdp_backward
  arithmetic_pair = chunk.arithmetic * constants.overlap_slowdown
  overlapped = max(arithmetic_pair, passes * chunk.exchange, 2 * send)
  moved = chunk.exchange + chunk.gathers
  costs = schedules.Costs(
    forward=max(chunk.forward + moved + fsdp_forward, send),
    backward_input=max(
      chunk.backward_input + chunk.repeats * moved + fsdp_backward, send
    ),
    backward_weight=chunk.backward_weight,
    pair=overlapped + passes * chunk.gathers + fsdp,
  )
  count = run.micro_batches
  in_pair = max(overlapped - arithmetic_pair, 0.0)
  if layout.schedule == 'dualpipe' and layout.pipeline > 1:
    counts = schedules.dual_counts(layout.pipeline, count)
    once = schedules.closed_form_bubble('dualpipe', layout.pipeline, costs)
    exposed = counts['F'] + (counts['B'] + counts['I']) * chunk.repeats
    exposed = exposed * chunk.exchange + counts['FB'] * in_pair
  elif layout.overlap:  # Forward and backward of two micro-batches in 1F1B.
    counts = {'F': 0.0, 'B': 0.0, 'I': 0.0, 'W': 0.0, 'FB': float(count)}
    once = (layout.pipeline - 1) * costs.pair / layout.virtual_stages
    exposed = count * in_pair
  else:
    apart = layout.schedule == 'zb1p' and layout.pipeline > 1
    counts = {'F': count, 'B': 0 if apart else count, 'FB': 0.0}
    counts |= dict.fromkeys(('I', 'W'), count if apart else 0)
    once = schedules.closed_form_bubble(layout.schedule, layout.pipeline, costs)
    once /= layout.virtual_stages
    exposed = passes * count * chunk.exchange
  sent = count * (chunk.fsdp_forward + chunk.fsdp_backward - fsdp)
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
    tensor=passes * count * chunk.gathers,
    fsdp=count * fsdp,
    hidden=max(passes * count * chunk.exchange - exposed, 0.0) + sent,
    tokens=run.step_tokens,
    devices=layout.devices,
  )
