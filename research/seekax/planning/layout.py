"""How a training run lies on its devices.

The axes are those of the mesh. Experts lie on data ranks: the batch is cut
over data, fsdp, expert_node and expert alike, and the routed experts over the
last two. ZeRO-1 is always on: a data rank keeps the optimizer's state for its
share of the parameters; fsdp cuts the parameters themselves too.

Devices are numbered along the last axes first, as parallel/mesh.py does:
pipeline, data, fsdp, expert_node, expert, context, tensor. So the ranks of an
axis are as far apart as all axes after it take devices, and stay on fast links
(NVLink) only if all of these together do: `within` says so.
"""

import dataclasses
import math
from typing import Any

from seekax.configuration.compute import ComputeConfig, REMAT_POLICIES
from seekax.configuration.errors import did_you_mean, InputError
from seekax.configuration.model import ModelConfig
from seekax.planning import schedule_orders
from seekax.planning.hardware import Device

# From the outermost to the innermost.
AXES = ('pipeline', 'data', 'fsdp', 'expert_node', 'expert')
AXES += ('context', 'tensor')


# Fields that the config's group `compute` sets, not --layout.
OF_COMPUTE = ('exchange_slack', 'dispatch_dtype')


@dataclasses.dataclass(frozen=True)
class Layout:
  """Sizes of the mesh's axes, and how a step is cut and ordered.

  Attributes:
    pipeline: ranks of the pipeline; there are as many stages, or two per rank
      (dualpipe holds each stage twice), or `virtual_stages` per rank.
    tensor: devices that share heads and hidden widths.
    context: devices that share a sequence.
    expert_node: nodes over which routed experts are cut.
    expert: devices of a node over which routed experts are cut.
    fsdp: data ranks that also share the parameters.
    data: data ranks that hold copies of the parameters.
    micro_batch: sequences that a data rank computes at once.
    schedule: the pipeline's schedule.
    virtual_stages: stages that a rank runs in turn; 1f1b only.
    remat: what the backward pass recomputes, as compute.remat.
    overlap: whether the exchange of tokens hides behind arithmetic without a
      dual schedule.
    fp8_dispatch: under FP8, tokens go to their experts in FP8.
    exchange_slack: as compute.exchange_slack.
    dispatch_dtype: as compute.dispatch_dtype.
    whole_experts: tensor ranks hold different experts and send their own share
      of the tokens (Megatron's expert-tensor-parallel size 1). Otherwise, as
      this program does, they hold a part of every expert's width and each of
      them sends all tokens.
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
  exchange_slack: float = 1.25
  dispatch_dtype: str = 'compute'
  whole_experts: bool = False

  @property
  def devices(self) -> int:
    return math.prod(getattr(self, axis) for axis in AXES)

  @property
  def experts_over(self) -> int:
    """Devices over which the routed experts of a layer are spread."""
    return self.expert_node * self.experts_per_node

  @property
  def experts_per_node(self) -> int:
    """Devices of one node over which they are spread."""
    return self.expert * (self.tensor if self.whole_experts else 1)

  @property
  def experts_share(self) -> float:
    """The share of a layer's routed experts that a device holds."""
    widths = 1 if self.whole_experts else self.tensor
    return 1 / self.experts_over / widths

  @property
  def data_ranks(self) -> int:
    """Parts into which the batch is cut."""
    return self.data * self.fsdp * self.expert_node * self.expert

  def within(self, axis: str, domain: int) -> bool:
    """Whether an axis's ranks lie within `domain` devices on fast links."""
    inner = AXES[AXES.index(axis) :]
    return math.prod(getattr(self, name) for name in inner) <= domain

  def micro_batches(self, batch_size: int) -> int:
    """Micro-batches per step and data rank."""
    return batch_size // (self.data_ranks * self.micro_batch)

  def computed_as(self, compute: ComputeConfig) -> 'Layout':
    """The same with what a config's group `compute` says of the exchange."""
    chosen = {name: getattr(compute, name) for name in OF_COMPUTE}
    return dataclasses.replace(self, **chosen)

  def describe(self) -> str:
    """The fields that aren't at their defaults, as --layout reads them."""
    plain = Layout()
    return (
      ','.join(
        f'{field.name}:{getattr(self, field.name)}'
        for field in dataclasses.fields(self)
        if getattr(self, field.name) != getattr(plain, field.name)
      )
      or 'data:1'
    )


class NoMultiple(InputError):
  """A layout's axes take `unit` devices, and --devices is no multiple of it."""

  def __init__(self, message: str, unit: int):
    super().__init__(message)
    self.unit = unit


def paper(devices: int) -> Layout:
  """DeepSeek-V3's layout: 16-way pipeline, 64-way experts, ZeRO-1.

  DeepSeek-V3, section 3.2: experts lie over 8 nodes. The data ranks beyond 64
  are `devices` / 1,024.

  Raises:
    NoMultiple: `devices` is no multiple of 1,024.
  """
  if devices < 1 or devices % 1024:
    raise NoMultiple(
      f"--devices={devices}: the paper's layout needs a multiple of 1024 "
      '(16 stages x 64 expert ranks)',
      1024,
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
      takes the rest of the devices, also if it is written as data:-1.
    devices: the number of all devices.

  Raises:
    InputError: a name or value can't be, or the product isn't `devices`.
    NoMultiple: the axes don't divide `devices`.
  """
  if text == 'paper':
    return paper(devices)
  known = {
    field.name: field
    for field in dataclasses.fields(Layout)
    if field.name not in OF_COMPUTE
  }
  given: dict[str, Any] = {}
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
    if name in given:
      raise InputError(f'--layout={text}: {name} is given twice; write it once')
    given[name] = _read(text, name, value, known[name].default)
  if given.get('data', -1) == -1:
    whole: dict[str, Any] = {**given, 'data': 1}
    rest = Layout(**whole).devices
    if devices % rest:
      raise NoMultiple(
        f'--layout={text}: its axes take {rest} devices, and '
        f'--devices={devices} is no multiple',
        rest,
      )
    given['data'] = devices // rest
  layout = Layout(**given)
  if layout.devices != devices:
    raise InputError(
      f'--layout={text} takes {layout.devices} devices, not '
      f'--devices={devices}; leave data out for the rest'
    )
  return layout


def _read(text: str, name: str, value: str, default):
  if isinstance(default, bool):
    if value.lower() in ('true', 'false'):
      return value.lower() == 'true'
    raise InputError(f'--layout={text}: {name}:{value} is not true or false')
  if isinstance(default, str):
    choices = {'schedule': schedule_orders.SCHEDULES, 'remat': REMAT_POLICIES}[
      name
    ]
    if value in choices:
      return value
    raise InputError(
      f'--layout={text}: {name}:{value} is not one of {", ".join(choices)}'
      + did_you_mean(value, choices)
    )
  if value.isdecimal() and int(value) or (name, value) == ('data', '-1'):
    return int(value)
  rest = ', or data:-1 for the rest of the devices' if name == 'data' else ''
  raise InputError(
    f'--layout={text}: {name}:{value} is no number above 0; write {name}:2'
    + rest
  )


def problem(
  layout: Layout,
  model: ModelConfig,
  device: Device,
  batch_size: int,
  sequence_length: int,
) -> str:
  """Why this model can't be trained in this layout; '' if it can.

  Memory is not looked at: see memory.py.
  """
  layers = model.num_layers + model.mtp_depth
  stages = layout.pipeline * layout.virtual_stages
  if not model.uses_experts and layout.experts_over > 1:
    return 'a dense model has no experts to cut; leave expert out'
  if model.uses_experts and model.num_experts % layout.experts_over:
    return (
      f'{model.num_experts} experts are not divisible by expert_node x expert '
      + ('x tensor ' if layout.whole_experts else '')
      + f'= {layout.experts_over}'
    )
  if stages > layers:
    return f'{stages} stages are more than the {layers} layers'
  if model.num_heads % layout.tensor or model.kv_heads % layout.tensor:
    return (
      f'{model.num_heads} heads ({model.kv_heads} of keys) are not divisible '
      f'by tensor = {layout.tensor}'
    )
  hidden = {}
  if model.num_plain_layers:
    hidden['mlp_dim'] = model.mlp_dim
  if model.uses_experts and not layout.whole_experts:
    hidden['expert_dim'] = model.expert_dim
  for name, width in hidden.items():
    if width % layout.tensor:
      return f'{name} = {width} is not divisible by tensor = {layout.tensor}'
  for axis in ('tensor', 'expert'):
    if getattr(layout, axis) > 1 and not layout.within(
      axis, device.domain_size
    ):
      return _too_far(layout, axis, device)
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
    return f'virtual_stages need schedule:1f1b, not {layout.schedule}'
  if layout.schedule == 'dualpipev':
    return 'dualpipev is simulated only; use dualpipe'
  if layout.pipeline == 1:
    return ''
  return schedule_orders.check(
    layout.schedule, layout.pipeline, layout.micro_batches(batch_size)
  )


def _too_far(layout: Layout, axis: str, device: Device) -> str:
  """Says that an axis, with those inside it, is wider than fast links reach."""
  inner = [n for n in AXES[AXES.index(axis) :] if getattr(layout, n) > 1]
  taken = math.prod(getattr(layout, name) for name in inner)
  return (
    f'{" x ".join(inner)} = {taken} is more than the {device.domain_size} '
    f'{device.name} that fast links join'
    + ('; cut experts over expert_node too' if axis == 'expert' else '')
  )
