"""How a config group declares a key and checks its values."""

import dataclasses
import math
from typing import TypeVar

from seekax.configuration.errors import ConfigError, did_you_mean

_T = TypeVar('_T')


def key(default: _T, help_text: str) -> _T:
  return dataclasses.field(default=default, metadata={'help': help_text})


def require(condition: bool, message: str) -> None:
  if not condition:
    raise ConfigError(message)


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ConfigError(
      f'{name}={value!r} is not one of {", ".join(choices)}'
      + did_you_mean(str(value), choices)
    )


def is_finite(value: float) -> bool:
  """Whether a number can be used; integers above 63 bits can't either."""
  return abs(value) < (2**63 if isinstance(value, int) else math.inf)


def check_positive(group: str, config: object, names: tuple[str, ...]) -> None:
  for name in names:
    value = getattr(config, name)
    require(
      is_finite(value) and value > 0,
      f'{group}.{name}={value} must be above 0',
    )


def check_not_negative(
  group: str, config: object, names: tuple[str, ...]
) -> None:
  for name in names:
    value = getattr(config, name)
    require(
      is_finite(value) and value >= 0,
      f'{group}.{name}={value} must not be negative',
    )
