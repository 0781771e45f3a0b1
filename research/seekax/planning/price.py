"""Device hours and dollars of a training run.

A device hour is one accelerator for one hour. Prices are rents, in dollars per
device hour; they leave out research, failed runs, data and staff.
"""

import dataclasses

_SECONDS_PER_HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class TrainingHours:
  """Device hours by stage of a training run (DeepSeek-V3, table 1)."""

  pretraining: float
  context_extension: float  # to 32K, then to 128K
  posttraining: float

  @property
  def total(self) -> float:
    return self.pretraining + self.context_extension + self.posttraining


# DeepSeek-V3, table 1, on H800.
V3_HOURS = TrainingHours(2664e3, 119e3, 5e3)
V3_PRICE = 2.0  # dollars per H800 hour, the report's assumption
V3_PRETRAINING_TOKENS = 14.8e12
V3_DEVICES = 2048


def device_hours(tokens: float, tokens_per_second_per_device: float) -> float:
  """Device hours to train on `tokens`, on any number of devices.

  Raises:
    ValueError: the rate isn't above zero.
  """
  if tokens_per_second_per_device <= 0:
    raise ValueError(
      f'tokens_per_second_per_device={tokens_per_second_per_device} must be '
      'above 0'
    )
  return tokens / tokens_per_second_per_device / _SECONDS_PER_HOUR


def wall_hours(hours: float, num_devices: int) -> float:
  """Hours by the clock of `hours` device hours on `num_devices` devices.

  Raises:
    ValueError: there is no device.
  """
  if num_devices <= 0:
    raise ValueError(f'num_devices={num_devices} must be above 0')
  return hours / num_devices


def dollars(hours: float, price_per_device_hour: float) -> float:
  """Price of `hours` device hours, in dollars."""
  return hours * price_per_device_hour


def training_dollars(
  hours: TrainingHours, price_per_device_hour: float
) -> TrainingHours:
  """The same stages in dollars; `total` is their sum."""
  return TrainingHours(
    **{
      field.name: dollars(getattr(hours, field.name), price_per_device_hour)
      for field in dataclasses.fields(hours)
    }
  )
