"""A whole plan: what a model is, what training it costs, what serving it does.

Everything is computed here and nothing rounded; cli/plan.py prints it.
"""

import dataclasses
import math
from typing import Any

from seekax.config import Config, InputError
from seekax.planning import (
  calibration,
  flops,
  memory,
  parameters,
  price,
  serving,
  step_time,
  traffic,
)
from seekax.planning import layout as layout_lib
from seekax.planning import search as search_lib
from seekax.planning.hardware import Device
from seekax.planning.layout import Layout

# DeepSeek-V3, section 4.3: 1,000 steps each, at these positions.
_EXTENSION_STEPS = 1000
_EXTENSION_STEP_TOKENS = 1920 * 32768  # or 480 * 131072
_EXTENSIONS = {'extension_32k': 32768, 'extension_128k': 131072}
_MOST_DEVICES = 2**20
_MOST_POWER = 15  # of two, of the devices that are proposed
_MOST_TOKENS, _MOST_PRICE = 1e18, 1e6


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be planned.

  Attributes:
    config: of the run; model, batch, precision and moments count.
    device: of which all are.
    devices: how many.
    tokens: of pre-training.
    price: dollars per device hour.
    posttraining_hours: device hours, an input; below 0: DeepSeek-V3's 5,000 in
      proportion to its tokens.
    layout: 'paper', or names and values; '': the paper's where it can be, else
      the cheapest.
  """

  config: Config
  device: Device
  devices: int
  tokens: float
  price: float
  posttraining_hours: float = -1.0
  layout: str = ''


@dataclasses.dataclass(frozen=True)
class Plan:
  """The answer. Hours are device hours by stage, memory that of one device."""

  request: Request
  run: step_time.Run
  step: step_time.StepTime
  memory: memory.TrainingMemory
  hours: dict[str, float]
  service: serving.Service | None

  @property
  def dollars(self) -> dict[str, float]:
    return {
      stage: price.dollars(hours, self.request.price)
      for stage, hours in self.hours.items()
    }

  @property
  def flops_per_token(self) -> float:
    """Model FLOP of a trained token, MTP left out (arXiv 2505.09343)."""
    return flops.training_flops_per_token(
      self.run.model, self.run.sequence_length
    )

  @property
  def mfu(self) -> float:
    """Of the bfloat16 peak, whatever the precision (arXiv 2505.09343)."""
    return flops.model_flops_utilization(
      self.flops_per_token,
      self.step.tokens_per_second_per_device,
      self.run.device.peak_flops,
    )

  @property
  def days(self) -> float:
    """By the clock, all stages one after the other."""
    return price.wall_hours(self.hours['total'], self.request.devices) / 24

  def traffic_bytes_per_token(self) -> dict[str, traffic.Bytes]:
    """Sent per trained token, by all devices together, both directions."""
    model, layout, run = self.run.model, self.run.layout, self.run
    layers = model.num_layers + model.mtp_depth
    sent = {}
    if model.uses_experts and layout.experts_over > 1:
      fp8 = run.fp8 and layout.fp8_dispatch
      dispatch, combine = traffic.exchange_per_token(model, layout, fp8)
      routed = model.num_expert_layers + model.mtp_depth
      sent['dispatch'] = dispatch * (2.0 * routed)
      sent['combine'] = combine * (2.0 * routed)
    if layout.tensor > 1:
      one = traffic.tensor_per_token(model, layout)
      sent['tensor'] = one * (2.0 * layers * layout.tensor)
    if layout.context > 1:
      one = traffic.context_per_token(
        model, run.sequence_length, run.sequence_length // layout.context
      )
      sent['context'] = one * (2.0 * layers)
    if layout.pipeline > 1:
      one = traffic.pipeline_per_token(model, layout)
      sent['pipeline'] = one * (2.0 * (layout.pipeline - 1))
    if layout.data_ranks > 1:
      stage = memory.stage_parameters(model, layout, largest=False)
      one = traffic.data_parallel_per_step(stage.plain, stage.experts, layout)
      sent['data'] = one * (layout.devices / run.step_tokens)
    return sent

  def as_json(self) -> dict[str, Any]:
    """Names and figures of --json."""
    counts = parameters.count_parameters(self.run.model)
    found = {
      'hardware': self.run.device.name,
      'devices': self.request.devices,
      'tokens': self.request.tokens,
      'price_per_device_hour': self.request.price,
      'layout': self.run.layout.describe(),
      'precision': self.run.precision,
      'parameters_total': counts.total,
      'parameters_activated': counts.activated,
      'parameters_mtp': counts.mtp,
      'gflop_per_token': self.flops_per_token / 1e9,
      'cache_bytes_per_token': memory.cache_bytes_per_token(self.run.model),
      'tokens_per_second_per_device': self.step.tokens_per_second_per_device,
      'mfu': self.mfu,
      'seconds_per_step': self.step.seconds,
      'seconds': {
        name: getattr(self.step, name)
        for name in ('forward', 'backward', 'weight', 'pair', 'bubble')
        + ('optimizer', 'exchange', 'tensor')
      },
      'hours': self.hours,
      'dollars': self.dollars,
      'memory_bytes': {
        **dataclasses.asdict(self.memory),
        'total': self.memory.total,
      },
      'traffic_bytes_per_token': {
        name: dataclasses.asdict(sent)
        for name, sent in self.traffic_bytes_per_token().items()
      },
      'serving': None,
    }
    if self.service:
      found['serving'] = dataclasses.asdict(self.service) | {
        'dollars_per_million_input_tokens': serving.dollars_per_million(
          self.service.prefill_tokens_per_second, self.request.price
        ),
        'dollars_per_million_output_tokens': serving.dollars_per_million(
          self.service.decode_tokens_per_second, self.request.price
        ),
      }
    return found


def make(request: Request) -> Plan:
  """Plans one run.

  Raises:
    InputError: a number can't be, or nothing fits; the message names what does.
  """
  _check(request)
  base = _run(request)
  run = dataclasses.replace(base, layout=_choose(request, base))
  step = step_time.predict(run)
  return Plan(
    request=request,
    run=run,
    step=step,
    memory=memory.training_memory(
      run.model,
      run.layout,
      run.batch_size,
      run.sequence_length,
      run.precision,
      run.moment_dtype,
    ),
    hours=_hours(request, run, step),
    service=serving.plan(run.model, run.device, run.fp8),
  )


def search(request: Request, most: int) -> list[search_lib.Found]:
  """The cheapest layouts that fit.

  Raises:
    InputError: none does.
  """
  _check(request)
  found = search_lib.cheapest(_run(request), request.devices, most)
  if not found:
    raise _nothing_fits(request)
  return found


def dense_of_equal_activation(config: Config) -> Config:
  """The run with a dense FFN, as many parameters multiplied per token.

  The hidden width is what the count leaves; MTP modules are left out.
  """
  model = config.model
  target = parameters.count_parameters(model).activated_without_embedding
  dense = dataclasses.replace(
    model, ffn='dense', num_dense_layers=0, mtp_depth=0, mlp_dim=1
  )
  narrow = parameters.count_parameters(dense)
  per_width = 3 * model.embed_dim * model.num_layers
  rest = target - narrow.activated_without_embedding
  width = 1 + round(rest / per_width)
  return dataclasses.replace(
    config, model=dataclasses.replace(dense, mlp_dim=width)
  )


def _check(request: Request) -> None:
  def refuse(condition: bool, message: str) -> None:
    if condition:
      raise InputError(message)

  refuse(
    not 1 <= request.devices <= _MOST_DEVICES,
    f'--devices={request.devices} is not in 1 to {_MOST_DEVICES}',
  )
  refuse(
    request.devices > 1 and not request.device.network_bandwidth,
    f'--devices={request.devices}: no network of a {request.device.name} is '
    'given here; plan --devices=1, or GPUs',
  )
  data = request.config.data
  step = data.batch_size * data.sequence_length
  refuse(
    not step <= request.tokens <= _MOST_TOKENS,
    f'--tokens={request.tokens:g} is not between one step of this config '
    f'({step:,} tokens) and {_MOST_TOKENS:g}',
  )
  refuse(
    not 0 <= request.price <= _MOST_PRICE,
    f'--price={request.price:g} dollars per device hour is not in 0 to '
    f'{_MOST_PRICE:g}',
  )
  refuse(
    not request.posttraining_hours < math.inf,
    f'--posttraining_hours={request.posttraining_hours} is no number of hours',
  )


def _run(request: Request) -> step_time.Run:
  config = request.config
  return step_time.Run(
    model=config.model,
    device=request.device,
    layout=Layout(),
    batch_size=config.data.batch_size,
    sequence_length=config.data.sequence_length,
    precision=config.train.precision,
    moment_dtype=config.optim.moment_dtype,
  )


def _choose(request: Request, run: step_time.Run) -> Layout:
  if request.layout:
    layout = layout_lib.parse(request.layout, request.devices)
    wrong = _wrong(dataclasses.replace(run, layout=layout))
    if not wrong:
      return layout
    near = search_lib.nearest(
      dataclasses.replace(run, layout=layout), request.devices
    )
    if near is None:
      raise _nothing_fits(request)
    raise InputError(
      f'--layout={request.layout}: {wrong}; the nearest that fits is '
      f'--layout={near.describe()}'
    )
  if run.model.uses_experts and request.devices % 1024 == 0:
    layout = layout_lib.paper(request.devices)
    if not _wrong(dataclasses.replace(run, layout=layout)):
      return layout
  return search(request, 1)[0].layout


def _wrong(run: step_time.Run) -> str:
  """What is wrong with a run's layout, memory included; '' if nothing."""
  wrong = layout_lib.problem(
    run.layout, run.model, run.device, run.batch_size, run.sequence_length
  )
  if wrong:
    return wrong
  needed = search_lib.required_bytes(run)
  if needed > run.device.memory_bytes:
    return (
      f'it takes {needed / 1e9:.1f} GB, a {run.device.name} has '
      f'{run.device.memory_bytes / 1e9:g}'
    )
  return ''


def _nothing_fits(request: Request) -> InputError:
  """Names the next number of devices that holds the run, a power of two."""
  run, devices = _run(request), request.devices
  message = (
    f'--devices={devices}: no layout of so many {request.device.name} holds '
    'this run'
  )
  powers = [2**n for n in range(_MOST_POWER + 1)]
  if not request.device.network_bandwidth:
    powers = [1]
  more = [n for n in powers if n > devices]
  fewer = [n for n in reversed(powers) if n < devices]
  for other in more + fewer:
    if search_lib.cheapest(run, other, 1):
      return InputError(f'{message}; --devices={other} does')
  return InputError(f'{message}, nor do others; try another --hardware')


def _hours(
  request: Request, run: step_time.Run, step: step_time.StepTime
) -> dict[str, float]:
  """Device hours by stage; extensions in V3's proportion to pre-training."""
  proportion = request.tokens / price.V3_PRETRAINING_TOKENS
  rate = step.tokens_per_second_per_device
  hours = {'pretraining': price.device_hours(request.tokens, rate)}
  for stage, positions in _EXTENSIONS.items():
    hours[stage] = 0.0
    # Where a batch holds no such sequence, nothing is extended.
    if run.batch_size * run.sequence_length >= positions:
      longer = calibration.extension(run, positions)
      rate = step_time.predict(longer).tokens_per_second_per_device
      tokens = _EXTENSION_STEPS * _EXTENSION_STEP_TOKENS * proportion
      hours[stage] = price.device_hours(tokens, rate)
  hours['posttraining'] = (
    price.V3_HOURS.posttraining * proportion
    if request.posttraining_hours < 0
    else request.posttraining_hours
  )
  hours['total'] = sum(hours.values())
  return hours
