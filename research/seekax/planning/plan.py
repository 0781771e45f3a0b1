"""A whole plan: what a model is, what training it costs, what serving it does.

Everything is computed here and nothing is rounded; cli/plan.py prints it.
"""

import dataclasses

from seekax.configuration.config import Config
from seekax.configuration.model import ModelConfig
from seekax.files import JsonObject
from seekax.planning import (
  flops,
  hardware,
  layout_choice,
  memory,
  parameters,
  price,
  serving,
  step_time,
  step_traffic,
  traffic,
)
from seekax.planning.layout import Layout
from seekax.planning.request import Request
from seekax.planning.run import Run

# DeepSeek-V3, section 4.3: 1,000 steps each, at these positions.
_EXTENSION_STEPS = 1000
_EXTENSION_STEP_TOKENS = 1920 * 32768  # or 480 * 131072
_EXTENSIONS = {'extension_32k': 32768, 'extension_128k': 131072}
# FLOP of a token that V3 was pre-trained on.
_V3_FLOPS = flops.training_flops_per_token(ModelConfig(), 4096)


@dataclasses.dataclass(frozen=True)
class Plan:
  """The answer to a request.

  Attributes:
    request: what was asked.
    layout_from: where the layout is from, as in layout_choice.py.
    run: the run in its layout.
    step: the time of a step.
    memory: bytes on the device that holds most.
    longer: memory of the stages of context extension, in the same layout.
    hours: device hours by stage.
    service: what serving the model gives; None if it finds no room.
  """

  request: Request
  layout_from: str
  run: Run
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
    """Model FLOP of a trained token without MTP (arXiv 2505.09343)."""
    return flops.training_flops_per_token(
      self.run.model, self.run.sequence_length
    )

  @property
  def mfu(self) -> float:
    """The share of the bfloat16 peak, in any precision (arXiv 2505.09343)."""
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
    """Days by the clock, all stages one after the other."""
    return price.wall_hours(self.hours['total'], self.request.devices) / 24

  def traffic_bytes_per_token(self) -> dict[str, traffic.Bytes]:
    """Bytes that all devices send per trained token, forward and backward."""
    return step_traffic.per_token(self.run)

  def as_json(self) -> JsonObject:
    """The names and figures that --json writes."""
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
    found: the layout, if `layout_choice.search` has found it already.

  Raises:
    InputError: a number can't be, or nothing fits; the message names what does.
  """
  request.check()
  base = request.run()
  if found:
    layout, layout_from = found, layout_choice.CHEAPEST
  else:
    layout, layout_from = layout_choice.choose(request, base)
  run = dataclasses.replace(base, layout=layout)
  step = step_time.predict(run)
  return Plan(
    request=request,
    layout_from=layout_from,
    run=run,
    step=step,
    memory=run.training_memory(),
    longer={
      stage: longer.training_memory()
      for stage, longer in _extensions(request, run).items()
    },
    hours=_hours(request, run, step),
    service=serving.plan(run.model, run.device, run.fp8),
  )


def dense_of_equal_activation(config: Config) -> Config:
  """The run with a dense FFN that multiplies as many parameters per token.

  The FFN is as wide as that allows; MTP modules are left out.
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


def _extensions(request: Request, run: Run) -> dict[str, Run]:
  """The stages of context extension that follow, in the run's layout.

  None follow a config that is such a stage itself, and none whose sequences are
  longer than a batch.
  """
  if request.config.train.extend_context:
    return {}
  return {
    stage: run.extended(positions)
    for stage, positions in _EXTENSIONS.items()
    if run.batch_size * run.sequence_length >= positions
  }


def _hours(
  request: Request, run: Run, step: step_time.StepTime
) -> dict[str, float]:
  """Device hours by stage; extensions in V3's proportion to pre-training.

  A config of context extension has the hours of that stage alone.
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
