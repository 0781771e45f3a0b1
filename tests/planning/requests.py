"""Requests for plans that several tests begin with."""

import dataclasses

from seekax.configuration import presets
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.model import ModelConfig
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig
from seekax.planning import hardware
from seekax.planning.request import Request


def config(model: ModelConfig, **data) -> Config:
  """A run in FP8 with bfloat16 moments, as V3's."""
  return Config(
    model=model,
    data=DataConfig(**data),
    train=TrainConfig(precision='fp8'),
    optim=OptimConfig(moment_dtype='bfloat16'),
  )


def request(**changes) -> Request:
  """A plan of V3's run on its devices, with changes."""
  asked = Request(
    config=config(presets.v3_671b()),
    device=hardware.DEVICES['h800'],
    devices=2048,
    tokens=14.8e12,
    price=2.0,
  )
  return dataclasses.replace(asked, **changes)
