"""What serving a model takes: tokens per second, memory, dollars.

Prefill and decoding run on units of their own, as DeepSeek serves V3 (its
section 3.4, and the notes of February 2025: experts over 32 devices for
prefill, over 144 for decoding). Both rates are limits at full load, with two
micro-batches that hide each other's exchange; a service that waits for requests
stays below them.
"""

import dataclasses
import math

from seekax.configuration.model import ModelConfig
from seekax.planning import flops, memory, parameters, step_time, traffic
from seekax.planning.hardware import BFLOAT16, Constants, Device, FITTED, FP8
from seekax.planning.layout import Layout
from seekax.planning.run import Run

_PAPER_PREFILL, _PAPER_DECODE = 32, 144
# Positions that a device prefills at once, as in the published profile data.
_PREFILL_TOKENS = 16384
# Smaller models are served whole, on the fewest devices that leave half of
# their memory to requests, or at least a tenth.
_WEIGHTS_SHARE, _MOST_WEIGHTS_SHARE = 0.5, 0.9
_MOST_WHOLE = 8


@dataclasses.dataclass(frozen=True)
class Demand:
  """What is asked of a service.

  Attributes:
    context: cached positions per request, on average; V3's service has 4,989.
    prompt: positions of a prompt, which prefill computes.
    tokens_per_second_per_user: the least that a user should see; V3's service
      gives 20 to 22.
  """

  context: int = 4989
  prompt: int = 4096
  tokens_per_second_per_user: float = 20.0


@dataclasses.dataclass(frozen=True)
class Service:
  """What a device gives.

  Attributes:
    prefill_devices: number of devices that make a prefill unit.
    decode_devices: number of devices that make a decoding unit.
    prefill_tokens_per_second: tokens of prompts per second and device.
    decode_tokens_per_second: new tokens per second and device.
    requests: requests that a device decodes at once.
    tokens_per_second_per_user: what a user sees at that many requests.
    cache_bytes_per_request: bytes of the cache at the demand's context.
    weight_bytes: bytes of the weights on a decoding device.
  """

  prefill_devices: int
  decode_devices: int
  prefill_tokens_per_second: float
  decode_tokens_per_second: float
  requests: int
  tokens_per_second_per_user: float
  cache_bytes_per_request: float
  weight_bytes: float


def dollars_per_million(
  tokens_per_second_per_device: float, price_per_device_hour: float
) -> float:
  """Dollars for a million tokens at a rate; infinite if the rate is 0."""
  if not tokens_per_second_per_device:
    return math.inf
  return price_per_device_hour / 3600 / tokens_per_second_per_device * 1e6


def decode_exchange_seconds(
  tokens: int,
  destinations: int,
  width: int,
  bandwidth: float,
  dispatch_bytes: float = 1.0,
  combine_bytes: float = 2.0,
) -> float:
  """Dispatch and combine of one layer when every destination is remote.

  Args:
    tokens: tokens that a device sends at once.
    destinations: experts per token, the shared one among them.
    width: values of a token.
    bandwidth: bytes/s.
    dispatch_bytes: bytes of a value on its way to an expert (FP8).
    combine_bytes: bytes of a value on its way back (bfloat16).

  Returns:
    Seconds (arXiv 2505.09343, section 2.3.2: 120.96 us for 32 tokens, 9
    destinations, 7,000 wide at 50 GB/s).
  """
  values = tokens * destinations * width
  return (dispatch_bytes + combine_bytes) * values / bandwidth


def decode_limit(exchange_seconds: float, layers: int) -> float:
  """Tokens per second that a user sees if nothing but the exchange takes time.

  Two micro-batches take turns, so a layer costs two exchanges.
  """
  return 1 / (2 * exchange_seconds * layers)


def plan(
  model: ModelConfig,
  device: Device,
  fp8: bool,
  demand: Demand = Demand(),
  constants: Constants = FITTED,
) -> Service | None:
  """The rates of a device; None if the weights find no room.

  Args:
    model: the architecture; its MTP modules are left out.
    device: the accelerator that units are made of.
    fp8: whether weights, products and dispatch to experts are in FP8.
    demand: what users ask for.
    constants: what the model of time assumes.
  """
  model = dataclasses.replace(model, mtp_depth=0)
  fp8 = fp8 and bool(device.fp8_flops)
  prefill_devices, decode_devices = _units(model, device, fp8)
  if not decode_devices:
    return None
  prefill = _prefill_rate(
    model, device, prefill_devices, fp8, demand, constants
  )
  weights = _weight_bytes(model, decode_devices, fp8)
  per_request = demand.context * memory.cache_bytes_per_token(model)
  if not model.uses_experts:
    per_request /= decode_devices
  room = max(int((memory.room(device) - weights) // per_request), 0)
  # The most requests that memory and the rate of a user allow.
  low, high = 0, room
  while low < high:
    middle = (low + high + 1) // 2
    seconds = decode_seconds(
      model, device, decode_devices, middle, fp8, demand, constants
    )
    if 1 / seconds >= demand.tokens_per_second_per_user:
      low = middle
    else:
      high = middle - 1
  requests = low or min(room, 1)
  if not requests:
    return None
  seconds = decode_seconds(
    model, device, decode_devices, requests, fp8, demand, constants
  )
  shared = 1 if model.uses_experts else decode_devices
  return Service(
    prefill_devices=prefill_devices,
    decode_devices=decode_devices,
    prefill_tokens_per_second=prefill,
    decode_tokens_per_second=requests / seconds / shared,
    requests=requests,
    tokens_per_second_per_user=1 / seconds,
    cache_bytes_per_request=demand.context
    * memory.cache_bytes_per_token(model),
    weight_bytes=weights,
  )


def largest_unit(model: ModelConfig, device: Device) -> int:
  """Devices of the largest unit that a plan considers."""
  alone = min(_MOST_WHOLE, device.domain_size)
  if model.uses_experts and device.network_bandwidth:
    return _many(device)[1]
  return alone


def _many(device: Device) -> tuple[int, int]:
  """Devices of a prefill and a decoding unit over which experts are spread.

  Where fast links join enough devices, both units stay within them; otherwise
  they are as large as DeepSeek's.
  """
  if device.domain_size >= _PAPER_PREFILL:
    return _PAPER_PREFILL, 2 * _PAPER_PREFILL
  return _PAPER_PREFILL, _PAPER_DECODE


def _units(model: ModelConfig, device: Device, fp8: bool) -> tuple[int, int]:
  """Devices of a prefill and of a decoding unit; (0, 0) if no unit works."""
  most = min(_MOST_WHOLE, device.domain_size)
  small = [n for n in (1, 2, 4, 8) if n <= most]
  if model.uses_experts:
    small = [n for n in small if model.num_experts % n == 0]
  for share in (_WEIGHTS_SHARE, _MOST_WEIGHTS_SHARE):
    for devices in small:
      weights = _weight_bytes(model, devices, fp8)
      if weights <= share * device.memory_bytes:
        return devices, devices
    if model.uses_experts and device.network_bandwidth:
      many = _many(device)
      if _weight_bytes(model, many[1], fp8) <= share * device.memory_bytes:
        return many
  return 0, 0


def _weight_bytes(model: ModelConfig, devices: int, fp8: bool) -> float:
  """Bytes of the weights on a device.

  Experts are cut over the devices, and so are dense models; all else is whole.
  Vocabulary tables stay in bfloat16.
  """
  counts = parameters.count_parameters(model)
  value = 1.0 if fp8 else 2.0
  tables = counts.embedding + counts.head
  experts = model.num_expert_layers * model.num_experts * counts.routed_expert
  rest = counts.total - tables - experts
  if not model.uses_experts:
    return (rest * value + tables * 2.0) / devices
  return rest * value + tables * 2.0 + experts * value / devices


def _prefill_rate(model, device, devices, fp8, demand, constants) -> float:
  """Prefill tokens per second of a device: arithmetic or exchange limits it."""
  layout = Layout()
  if model.uses_experts:
    per_node = min(devices, device.domain_size)
    layout = Layout(expert_node=devices // per_node, expert=per_node)
  elif devices > 1:
    layout = Layout(tensor=devices)
  run = Run(
    model,
    device,
    dataclasses.replace(
      layout, micro_batch=max(_PREFILL_TOKENS // demand.prompt, 1)
    ),
    batch_size=devices,
    sequence_length=demand.prompt,
    precision='fp8' if fp8 else 'bfloat16',
  )
  chunk = step_time.chunks(run, constants)
  arithmetic = chunk.forward + chunk.gathers
  seconds = max(arithmetic * constants.overlap_slowdown, chunk.exchange)
  return run.chunk_tokens / seconds / layout.tensor


def decode_seconds(
  model: ModelConfig,
  device: Device,
  devices: int,
  requests: int,
  fp8: bool,
  demand: Demand,
  constants: Constants = FITTED,
) -> float:
  """Seconds of a decoding step without MTP.

  The longest of arithmetic, of reading weights and cache, and of the exchange.

  Args:
    model: the architecture.
    device: the accelerator that the unit is made of.
    devices: devices of the unit.
    requests: requests decoded at once, per device with experts, else per unit.
    fp8: whether weights, products and dispatch are in FP8.
    demand: what users ask for; only its context counts.
    constants: what the model of time assumes.
  """
  bandwidth = device.memory_bandwidth * constants.memory_efficiency
  cache = requests * demand.context * memory.cache_bytes_per_token(model)
  products = (
    2.0
    * requests
    * (parameters.count_parameters(model).activated_without_embedding)
  )
  attention = requests * _absorbed_flops(model, demand.context)
  shared = 1
  if not model.uses_experts:
    shared = devices
  read = _weight_bytes(model, devices, fp8) + cache / shared
  efficiency = (
    constants.expert_efficiency
    if model.uses_experts
    else constants.dense_efficiency
  )
  precision = 'fp8' if fp8 else 'bfloat16'
  arithmetic = products / shared / step_time.peak(device, precision)
  arithmetic /= efficiency
  arithmetic += (
    attention / shared / (device.peak_flops * constants.attention_efficiency)
  )
  seconds = max(read / bandwidth, arithmetic)
  if not model.uses_experts or devices == 1:
    return seconds
  # Each token goes straight to each of its experts, one after the other.
  values = requests * model.experts_per_token * model.embed_dim
  sent = values * (FP8 if fp8 else BFLOAT16)
  sent += values * BFLOAT16
  over = (
    traffic.Bytes(link=sent)
    if devices <= device.domain_size
    else traffic.Bytes(network=sent)
  )
  exchange = step_time.send_seconds(
    over * model.num_expert_layers, device, constants
  )
  return max(seconds, exchange)


def _absorbed_flops(model: ModelConfig, context: int) -> float:
  """FLOP of the attention of one new token over a cache, in all layers."""
  if model.attention == 'mla':
    width = 2 * model.kv_latent_dim + model.rope_head_dim
    return 2.0 * model.num_layers * model.num_heads * width * context
  return model.num_layers * flops.attention_flops_per_token(
    model, context, causal=False
  )
