"""A whole run: every group, validated together, and as nested dicts.

A value is never None: 0 or '' means absent, so that every key can be
overridden from the command line.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections

from seekax.configuration.compute import ComputeConfig
from seekax.configuration.data import DataConfig
from seekax.configuration.errors import ConfigError, did_you_mean
from seekax.configuration.eval import EvalConfig
from seekax.configuration.fields import require
from seekax.configuration.fp8 import Fp8Config
from seekax.configuration.mesh import ParallelConfig
from seekax.configuration.model import ModelConfig
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  model: ModelConfig = ModelConfig()
  compute: ComputeConfig = ComputeConfig()
  data: DataConfig = DataConfig()
  optim: OptimConfig = OptimConfig()
  parallel: ParallelConfig = ParallelConfig()
  train: TrainConfig = TrainConfig()
  fp8: Fp8Config = Fp8Config()
  eval: EvalConfig = EvalConfig()

  def __post_init__(self):
    parts = self.train.micro_batches
    require(
      self.data.batch_size % parts == 0,
      f'data.batch_size={self.data.batch_size} is not divisible by '
      f'train.micro_batches={parts}',
    )
    rows = self.data.batch_size // parts
    require(
      not self.train.ramp_tokens or rows % self.data.num_shards == 0,
      f'train.ramp_tokens needs micro-batches ({rows} rows: data.batch_size / '
      f'train.micro_batches) divisible by data.num_shards='
      f'{self.data.num_shards}, so that every shard gives as many rows',
    )
    require(
      self.data.sequence_length <= self.model.context_length,
      f'data.sequence_length={self.data.sequence_length} is above '
      f'model.context_length={self.model.context_length}',
    )
    require(
      self.data.sequence_length > self.model.mtp_depth,
      f'data.sequence_length={self.data.sequence_length} leaves no target for '
      f'model.mtp_depth={self.model.mtp_depth}',
    )


# Group name -> its dataclass.
GROUPS: dict[str, type[Any]] = {
  field.name: type(field.default) for field in dataclasses.fields(Config)
}


# --- Whole runs, as ml_collections sees them. ---------------------------------


def to_dict(config: Config) -> dict[str, dict[str, object]]:
  """The config as nested dicts in which every key stands."""
  return dataclasses.asdict(config)


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
  """The config as a locked ConfigDict in which every key stands."""
  return ml_collections.ConfigDict(to_dict(config)).lock()


def from_config_dict(config: ml_collections.ConfigDict) -> Config:
  """Validates a ConfigDict into dataclasses.

  Raises:
    ConfigError: a group or key is unknown, or a value can't work.
  """
  return from_dict(config.to_dict())


def from_dict(values: Mapping[str, Mapping[str, object]]) -> Config:
  """Validates a nested dict (as in run.json) into dataclasses.

  Raises:
    ConfigError: a group or key is unknown, or a value can't work.
  """
  groups = {}
  for name, entries in values.items():
    if name not in GROUPS:
      raise ConfigError(
        f'unknown config group {name!r}' + did_you_mean(name, GROUPS)
      )
    kind = GROUPS[name]
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in entries.items():
      if key not in known:
        raise ConfigError(
          f'unknown config key {name}.{key}' + did_you_mean(key, known)
        )
      _check_type(f'{name}.{key}', value, known[key].default)
    groups[name] = kind(
      **{k: _restore(v, known[k].default) for k, v in entries.items()}
    )
  return Config(**groups)


def _restore(value: Any, default: object) -> object:
  if isinstance(default, tuple):
    return tuple(value)
  return float(value) if isinstance(default, float) else value


def _check_type(name: str, value: Any, default: Any) -> None:
  wanted = type(default)
  ok = isinstance(value, wanted) and isinstance(value, bool) == isinstance(
    default, bool
  )
  if wanted is float:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
  if wanted is tuple:
    item = type(default[0])
    is_list = isinstance(value, (list, tuple))
    strange = [x for x in value if not isinstance(x, item)] if is_list else []
    require(
      not strange,
      f'{name}={value!r} holds {strange[:1]}, which is no {item.__name__}',
    )
    ok = is_list
  require(
    ok, f'{name}={value!r} is a {type(value).__name__}, not a {wanted.__name__}'
  )
