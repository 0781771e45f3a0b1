"""What a plan is asked for, checked before anything is computed."""

import dataclasses

from seekax.configuration.config import Config
from seekax.configuration.errors import InputError
from seekax.planning.hardware import Device
from seekax.planning.layout import Layout
from seekax.planning.run import Run

_MOST_DEVICES = 2**20
_MOST_TOKENS, _MOST_PRICE, _MOST_HOURS = 1e18, 1e6, 1e12


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be planned.

  Attributes:
    config: the run's config; model, batch, precision and moments count. FP8 is
      planned as bfloat16 on devices that have none.
    device: the accelerator that every device is.
    devices: number of devices.
    tokens: tokens of pre-training, or of this stage if the config is one of
      context extension.
    price: dollars per device hour.
    posttraining_hours: device hours, an input; -1: DeepSeek-V3's 5,000 in
      proportion to the FLOP of pre-training.
    layout: 'paper', or names and values; '': the paper's layout if it works on
      nodes of 8, else the cheapest.
    layout_flag: flag that gave the layout, for messages; '': --layout.
    tokens_from: where `tokens` comes from, if it wasn't given.
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

  def check(self) -> None:
    """Raises InputError if a number can't be; the message names it."""

    def refuse(condition: bool, message: str) -> None:
      if condition:
        raise InputError(message)

    refuse(
      not 1 <= self.devices <= _MOST_DEVICES,
      f'--devices={self.devices} is not in 1 to {_MOST_DEVICES}',
    )
    refuse(
      self.devices > 1 and not self.device.network_bandwidth,
      f'--devices={self.devices}: the planner knows no network of a '
      f'{self.device.name}; plan --devices=1, or GPUs',
    )
    data = self.config.data
    step = data.batch_size * data.sequence_length
    refuse(
      not step <= self.tokens <= _MOST_TOKENS,
      f'--tokens={self.tokens:g} is not between one step of this config '
      f'({step:,} tokens) and {_MOST_TOKENS:g}',
    )
    refuse(
      not 0 <= self.price <= _MOST_PRICE,
      f'--price={self.price:g} dollars per device hour is not in 0 to '
      f'{_MOST_PRICE:g}',
    )
    refuse(
      self.posttraining_hours != -1
      and not 0 <= self.posttraining_hours <= _MOST_HOURS,
      f'--posttraining_hours={self.posttraining_hours:g} is not in 0 to '
      f"{_MOST_HOURS:g}, nor -1 for DeepSeek-V3's in proportion to its FLOP",
    )

  def run(self) -> Run:
    """The run, on one device until a layout is chosen."""
    config = self.config
    precision = config.train.precision
    if precision == 'fp8' and not self.device.fp8_flops:
      precision = 'bfloat16'
    return Run(
      model=config.model,
      device=self.device,
      layout=Layout().computed_as(config.compute),
      batch_size=config.data.batch_size,
      sequence_length=config.data.sequence_length,
      precision=precision,
      moment_dtype=config.optim.moment_dtype,
    )
