"""A whole plan: what a model is, what training it costs, what serving it does.

Everything is computed here and nothing rounded; cli/plan.py prints it.
"""

import dataclasses
import math
from typing import Any

from seekax.configuration.config import Config
from seekax.configuration.errors import InputError
from seekax.configuration.model import ModelConfig
from seekax.planning import (
  calibration,
  flops,
  hardware,
  memory,
  parameters,
  price,
  serving,
  step_time,
  step_traffic,
  traffic,
)
from seekax.planning import layout as layout_lib
from seekax.planning import search as search_lib
from seekax.planning.hardware import Device
from seekax.planning.layout import Layout, OF_COMPUTE

# DeepSeek-V3, section 4.3: 1,000 steps each, at these positions.
_EXTENSION_STEPS = 1000
_EXTENSION_STEP_TOKENS = 1920 * 32768  # or 480 * 131072
_EXTENSIONS = {'extension_32k': 32768, 'extension_128k': 131072}
_MOST_DEVICES = 2**20
_MOST_POWER = 15  # of two, of the devices that are proposed
_MOST_TOKENS, _MOST_PRICE, _MOST_HOURS = 1e18, 1e6, 1e12
# The domain of the devices that the paper's layout is of.
_PAPER_DOMAIN = 8
# FLOP per pre-training token of DeepSeek-V3.
_V3_FLOPS = flops.training_flops_per_token(ModelConfig(), 4096)
# How far from what was asked for a number of devices is looked for, in layouts.
_NEAR = 32
# Where a layout is from.
ASKED, PAPER, CHEAPEST = 'as asked', "the paper's", 'the cheapest found'


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be planned.

  Attributes:
    config: of the run; model, batch, precision and moments count. FP8 is
      planned as bfloat16 on devices that have none.
    device: of which all are.
    devices: how many.
    tokens: of pre-training, or of this stage where the config is one of context
      extension.
    price: dollars per device hour.
    posttraining_hours: device hours, an input; -1: DeepSeek-V3's 5,000 in
      proportion to the FLOP of pre-training.
    layout: 'paper', or names and values; '': the paper's where it can be on
      nodes of 8, else the cheapest.
    layout_flag: what the layout was given by, for messages; '': --layout.
    tokens_from: where `tokens` is from, if it wasn't given.
  """

  config: Config
  device: Device
  devices: int
  tokens: float
  price: float
  posttraining_hours: float = -1.0
  layout: str = ''
  layout_flag: str = ''
  tokens_from: str = ''


@dataclasses.dataclass(frozen=True)
class Plan:
  """The answer. Hours are device hours by stage, memory that of one device.

  Attributes:
    layout_from: ASKED, PAPER or CHEAPEST.
    longer: memory of the stages of context extension, in the same layout.
  """

  request: Request
  layout_from: str
  run: step_time.Run
  step: step_time.StepTime
  memory: memory.TrainingMemory
  longer: dict[str, memory.TrainingMemory]
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
    """Share of the bfloat16 peak, for any precision (arXiv 2505.09343)."""
    return flops.model_flops_utilization(
      self.flops_per_token,
      self.step.tokens_per_second_per_device,
      self.run.device.peak_flops,
    )

  @property
  def lacks_fp8(self) -> bool:
    """Whether the config wants FP8 and the device has none."""
    return self.run.precision != self.request.config.train.precision

  @property
  def days(self) -> float:
    """By the clock, all stages one after the other."""
    return price.wall_hours(self.hours['total'], self.request.devices) / 24

  def traffic_bytes_per_token(self) -> dict[str, traffic.Bytes]:
    """Sent per trained token, by all devices together, both directions."""
    return step_traffic.per_token(self.run)

  def as_json(self) -> dict[str, Any]:
    """Names and figures of --json."""
    counts = parameters.count_parameters(self.run.model)
    found = {
      'hardware': self.run.device.name,
      'devices': self.request.devices,
      'tokens': self.request.tokens,
      'price_per_device_hour': self.request.price,
      'layout': self.run.layout.describe(),
      'layout_from': self.layout_from,
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
        + ('optimizer', 'exchange', 'tensor', 'fsdp', 'hidden')
      },
      'hours': self.hours,
      'dollars': self.dollars,
      'memory_bytes': {
        **dataclasses.asdict(self.memory),
        'total': self.memory.total,
      },
      'memory_reserved_bytes': hardware.RESERVED_BYTES,
      'extension_memory_bytes': {
        stage: needed.total for stage, needed in self.longer.items()
      },
      'traffic_bytes_per_token': {
        name: dataclasses.asdict(sent)
        for name, sent in self.traffic_bytes_per_token().items()
      },
      'exchange_bytes_per_token_by_program': dataclasses.asdict(
        step_traffic.exchange_of_program(self.run)
      ),
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


def make(request: Request, found: Layout | None = None) -> Plan:
  """Plans one run.

  Args:
    request: what is asked.
    found: the layout, where `search` has found it already.

  Raises:
    InputError: a number can't be, or nothing fits; the message names what does.
  """
  _check(request)
  base = _run(request)
  layout, layout_from = (found, CHEAPEST) if found else _choose(request, base)
  run = dataclasses.replace(base, layout=layout)
  step = step_time.predict(run)
  return Plan(
    request=request,
    layout_from=layout_from,
    run=run,
    step=step,
    memory=step_time.training_memory(run),
    longer={
      stage: step_time.training_memory(longer)
      for stage, longer in _extensions(request, run).items()
    },
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
    request.posttraining_hours != -1
    and not 0 <= request.posttraining_hours <= _MOST_HOURS,
    f'--posttraining_hours={request.posttraining_hours:g} is not in 0 to '
    f"{_MOST_HOURS:g}, nor -1 for DeepSeek-V3's in proportion to its FLOP",
  )


def _run(request: Request) -> step_time.Run:
  config = request.config
  precision = config.train.precision
  if precision == 'fp8' and not request.device.fp8_flops:
    precision = 'bfloat16'
  return step_time.Run(
    model=config.model,
    device=request.device,
    layout=_as_computed(Layout(), config),
    batch_size=config.data.batch_size,
    sequence_length=config.data.sequence_length,
    precision=precision,
    moment_dtype=config.optim.moment_dtype,
  )


def _as_computed(layout: Layout, config: Config) -> Layout:
  """The layout with what the config's group `compute` says of the exchange."""
  chosen = {name: getattr(config.compute, name) for name in OF_COMPUTE}
  return dataclasses.replace(layout, **chosen)


def _choose(request: Request, run: step_time.Run) -> tuple[Layout, str]:
  """The layout, and where it is from."""
  if request.layout:
    return _asked(request, run), ASKED
  if (
    run.model.uses_experts
    and request.devices % 1024 == 0
    and run.device.domain_size == _PAPER_DOMAIN
  ):
    layout = _as_computed(layout_lib.paper(request.devices), request.config)
    if not _wrong(dataclasses.replace(run, layout=layout)):
      return layout, PAPER
  return search(request, 1)[0].layout, CHEAPEST


def _asked(request: Request, run: step_time.Run) -> Layout:
  flag = request.layout_flag or f'--layout={request.layout}'
  try:
    layout = layout_lib.parse(request.layout, request.devices)
    layout = _as_computed(layout, request.config)
  except layout_lib.NoMultiple as error:
    near = _nearest_devices(request, run, error.unit)
    advice = f'; --devices={near} works' if near else ''
    if not near and search_lib.any_fits(run, request.devices):
      advice = '; without --layout a plan finds one'
    raise InputError(
      str(error).replace(f'--layout={request.layout}', flag) + advice
    ) from error
  except InputError as error:
    text = str(error).replace(f'--layout={request.layout}', flag)
    raise InputError(text) from error
  asked = dataclasses.replace(run, layout=layout)
  wrong = _wrong(asked)
  if not wrong:
    return layout
  near = search_lib.nearest(asked, request.devices)
  if near is None:
    raise InputError(f'{flag}: {wrong}; {_nothing_fits(request)}')
  raise InputError(
    f'{flag}: {wrong}; the nearest that fits is --layout={near.describe()}'
  )


def _nearest_devices(request: Request, run: step_time.Run, unit: int) -> int:
  """The nearest number on which the layout that was asked for works, or 0."""
  middle = request.devices // unit
  multiples = range(max(middle - _NEAR, 1), middle + _NEAR)
  for count in sorted(
    (unit * n for n in multiples), key=lambda n: abs(n - request.devices)
  ):
    layout = layout_lib.parse(request.layout, count)
    if not _wrong(dataclasses.replace(run, layout=layout)):
      return count
  return 0


def _wrong(run: step_time.Run) -> str:
  """What is wrong with a run's layout, memory included; '' if nothing."""
  wrong = layout_lib.problem(
    run.layout, run.model, run.device, run.batch_size, run.sequence_length
  )
  if wrong:
    return wrong
  needed, room = search_lib.required_bytes(run), memory.room(run.device)
  if needed > room:
    return (
      f'it takes {needed / 1e9:.1f} GB, and of the '
      f'{run.device.memory_bytes / 1e9:g} of a {run.device.name} a plan uses '
      f'{room / 1e9:g}'
    )
  return ''


def _nothing_fits(request: Request) -> InputError:
  """Says why, and names a number of devices, a power of two, that will do."""
  run, devices = _run(request), request.devices
  name, room = request.device.name, memory.room(request.device)
  least = search_lib.leanest(run, devices)
  divisible = dataclasses.replace(run, batch_size=run.batch_size * devices)
  if math.isfinite(least):
    why = (
      f'no layout of so many {name} holds this run: the leanest takes '
      f'{least / 1e9:.1f} GB of {room / 1e9:g}'
    )
  elif search_lib.any_fits(divisible, devices):
    why = (
      f'a batch of {run.batch_size} sequences can be spread over so many '
      'devices in no layout'
    )
  else:
    why = f'no layout spreads this run over so many {name}'
  powers = [2**n for n in range(_MOST_POWER + 1)]
  if not request.device.network_bandwidth:
    powers = [1]
  more = [n for n in powers if n > devices]
  fewer = [n for n in reversed(powers) if n < devices]
  for other in more + fewer if math.isfinite(least) else fewer + more:
    if search_lib.any_fits(run, other):
      return InputError(f'--devices={devices}: {why}; --devices={other} works')
  return InputError(
    f'--devices={devices}: {why}, nor does one of another number up to '
    f'{powers[-1]}; try another --hardware or --config.data.batch_size'
  )


def _extensions(
  request: Request, run: step_time.Run
) -> dict[str, step_time.Run]:
  """The stages of context extension that follow, in the run's layout.

  None after a config that is such a stage itself, nor where a batch holds no
  such sequence.
  """
  if request.config.train.extend_context:
    return {}
  return {
    stage: calibration.extension(run, positions)
    for stage, positions in _EXTENSIONS.items()
    if run.batch_size * run.sequence_length >= positions
  }


def _hours(
  request: Request, run: step_time.Run, step: step_time.StepTime
) -> dict[str, float]:
  """Device hours by stage; extensions in V3's proportion to pre-training.

  All of a config of context extension is that stage.
  """
  rate = step.tokens_per_second_per_device
  here = price.device_hours(request.tokens, rate)
  hours = dict.fromkeys(('pretraining', *_EXTENSIONS, 'posttraining'), 0.0)
  if request.config.train.extend_context:
    stages = {positions: stage for stage, positions in _EXTENSIONS.items()}
    hours[stages.get(run.sequence_length, 'pretraining')] = here
    hours['posttraining'] = max(request.posttraining_hours, 0.0)
  else:
    hours['pretraining'] = here
    proportion = request.tokens / price.V3_PRETRAINING_TOKENS
    for stage, longer in _extensions(request, run).items():
      rate = step_time.predict(longer).tokens_per_second_per_device
      tokens = _EXTENSION_STEPS * _EXTENSION_STEP_TOKENS * proportion
      hours[stage] = price.device_hours(tokens, rate)
    per_token = flops.training_flops_per_token(run.model, run.sequence_length)
    hours['posttraining'] = (
      price.V3_HOURS.posttraining * proportion * per_token / _V3_FLOPS
      if request.posttraining_hours < 0
      else request.posttraining_hours
    )
  hours['total'] = sum(hours.values())
  return hours
