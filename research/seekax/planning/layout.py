"""How a training run lies on its devices.

The axes are those of the mesh. Experts lie on data ranks: the batch is cut
over data, fsdp, expert_node and expert alike, and the routed experts over the
last two. ZeRO-1 is always on: a data rank keeps the optimizer's state of its
share of the parameters; fsdp cuts the parameters themselves too.
"""

import dataclasses
import math

from seekax.config import did_you_mean, InputError, ModelConfig, REMAT_POLICIES
from seekax.planning import schedules
from seekax.planning.hardware import Device

_AXES = ('pipeline', 'tensor', 'context', 'expert_node', 'expert')
_AXES += ('fsdp', 'data')


@dataclasses.dataclass(frozen=True)
class Layout:
  """Sizes of the mesh's axes, and how a step is cut and ordered.

  Attributes:
    pipeline: ranks of the pipeline; as many stages, or two per rank (dualpipe
      holds each stage twice), or `virtual_stages` per rank.
    tensor: devices that share heads and hidden widths.
    context: devices that share a sequence.
    expert_node: nodes over which routed experts are cut.
    expert: devices of a node over which they are cut.
    fsdp: data ranks that also share the parameters.
    data: data ranks that don't.
    micro_batch: sequences that a data rank computes at once.
    schedule: of the pipeline.
    virtual_stages: of a rank, in turn; 1f1b only.
    remat: what is computed again for gradients, as model.remat.
    overlap: how the exchange of tokens hides behind arithmetic without a dual
      schedule: False: it doesn't.
    fp8_dispatch: under FP8, tokens go to their experts in FP8.
  """

  pipeline: int = 1
  tensor: int = 1
  context: int = 1
  expert_node: int = 1
  expert: int = 1
  fsdp: int = 1
  data: int = 1
  micro_batch: int = 1
  schedule: str = '1f1b'
  virtual_stages: int = 1
  remat: str = 'paper'
  overlap: bool = False
  fp8_dispatch: bool = True

  @property
  def devices(self) -> int:
    return math.prod(getattr(self, axis) for axis in _AXES)

  @property
  def experts_over(self) -> int:
    """Devices over which the routed experts of a layer are cut."""
    return self.expert_node * self.expert

  @property
  def data_ranks(self) -> int:
    """Parts in which the batch is cut."""
    return self.data * self.fsdp * self.experts_over

  @property
  def hides_exchange(self) -> bool:
    """Whether tokens travel while another micro-batch is computed."""
    return self.overlap or self.schedule in ('dualpipe', 'dualpipev')

  def micro_batches(self, batch_size: int) -> int:
    """Micro-batches per step and data rank."""
    return batch_size // (self.data_ranks * self.micro_batch)

  def describe(self) -> str:
    """What differs from one device with everything at its default."""
    plain = Layout()
    return (
      ','.join(
        f'{field.name}:{getattr(self, field.name)}'
        for field in dataclasses.fields(self)
        if getattr(self, field.name) != getattr(plain, field.name)
      )
      or 'data:1'
    )


def paper(devices: int) -> Layout:
  """DeepSeek-V3's: 16-way pipeline, experts 64-way over 8 nodes, ZeRO-1.

  DeepSeek-V3, section 3.2; the data ranks beyond 64 are `devices` / 1,024.

  Raises:
    InputError: `devices` is no multiple of 1,024.
  """
  if devices < 1 or devices % 1024:
    near = max(round(devices / 1024), 1) * 1024
    raise InputError(
      f"--devices={devices}: the paper's layout needs a multiple of 1024 "
      f'(16 stages x 64 expert ranks), the nearest is {near}; or leave '
      '--layout out'
    )
  return Layout(
    pipeline=16,
    expert_node=8,
    expert=8,
    data=devices // 1024,
    schedule='dualpipe',
  )


def parse(text: str, devices: int) -> Layout:
  """Reads 'paper' or 'pipeline:16,expert_node:8,expert:8,schedule:zb1p'.

  Args:
    text: names and values of fields. An axis that isn't named is 1; `data`
      takes the rest, also as data:-1.
    devices: in all.

  Raises:
    InputError: a name or value can't be, or the product isn't `devices`.
  """
  if text == 'paper':
    return paper(devices)
  known = {field.name: field for field in dataclasses.fields(Layout)}
  given = {}
  for part in text.split(','):
    name, _, value = part.partition(':')
    if name not in known:
      raise InputError(
        f'--layout={text}: unknown {name!r}'
        + (
          did_you_mean(name, [*known, 'paper'])
          or f'; known: paper, or {", ".join(known)} as name:value'
        )
      )
    given[name] = _read(text, name, value, known[name].default)
  if given.get('data', -1) == -1:
    rest = Layout(**{**given, 'data': 1}).devices
    if devices % rest:
      raise InputError(
        f'--layout={text}: its axes take {rest} devices, of which '
        f'--devices={devices} is no multiple; the nearest is '
        f'{max(round(devices / rest), 1) * rest}'
      )
    given['data'] = devices // rest
  layout = Layout(**given)
  if layout.devices != devices:
    raise InputError(
      f'--layout={text} takes {layout.devices} devices, not '
      f'--devices={devices}; write data:-1 for the rest'
    )
  return layout


def _read(text: str, name: str, value: str, default):
  if isinstance(default, bool):
    if value.lower() in ('true', 'false'):
      return value.lower() == 'true'
    raise InputError(f'--layout={text}: {name}:{value} is not true or false')
  if isinstance(default, str):
    choices = {'schedule': schedules.SCHEDULES, 'remat': REMAT_POLICIES}[name]
    if value in choices:
      return value
    raise InputError(
      f'--layout={text}: {name}:{value} is not one of {", ".join(choices)}'
      + did_you_mean(value, choices)
    )
  if value.isdecimal() and int(value) or (name, value) == ('data', '-1'):
    return int(value)
  raise InputError(f'--layout={text}: {name}:{value} is no number above 0')


def problem(
  layout: Layout,
  model: ModelConfig,
  device: Device,
  batch_size: int,
  sequence_length: int,
) -> str:
  """Why this model can't be trained so, in words; '' where it can.

  Memory is another matter: see memory.py.
  """
  layers = model.num_layers + model.mtp_depth
  stages = layout.pipeline * layout.virtual_stages
  if not model.uses_experts and layout.experts_over > 1:
    return 'a dense model has no experts to cut; leave expert out'
  if model.uses_experts and model.num_experts % layout.experts_over:
    return (
      f'{model.num_experts} experts are not divisible by expert_node x expert '
      f'= {layout.experts_over}'
    )
  if stages > layers:
    return f'{stages} stages are more than the {layers} layers'
  if model.num_heads % layout.tensor or model.kv_heads % layout.tensor:
    return (
      f'{model.num_heads} heads ({model.kv_heads} of keys) are not divisible '
      f'by tensor = {layout.tensor}'
    )
  for axis in ('tensor', 'expert'):
    if getattr(layout, axis) > device.domain_size:
      return (
        f'{axis} = {getattr(layout, axis)} is more than the '
        f'{device.domain_size} {device.name} that fast links join'
      )
  if sequence_length % layout.context:
    return (
      f'{sequence_length} positions are not divisible by context = '
      f'{layout.context}'
    )
  parts = layout.data_ranks * layout.micro_batch
  if batch_size % parts:
    return (
      f'a batch of {batch_size} sequences is not divisible by {parts} '
      f'({layout.data_ranks} data ranks x micro-batches of '
      f'{layout.micro_batch})'
    )
  if layout.virtual_stages > 1 and layout.schedule != '1f1b':
    return f'virtual_stages go with schedule:1f1b, not {layout.schedule}'
  if layout.schedule == 'dualpipev':
    return 'dualpipev is simulated only; use dualpipe'
  if layout.pipeline == 1:
    return ''
  return schedules.check(
    layout.schedule, layout.pipeline, layout.micro_batches(batch_size)
  )
