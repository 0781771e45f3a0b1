"""The oracle's training recipe in our words; for parity and for the tests."""

from typing import Any

import numpy as np

from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.model import ModelConfig
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig
from seekax.data.pipeline import Batch
from seekax.model.weights import Weights
from seekax.training.guard import init_guard
from seekax.training.optimizer import make_optimizer
from seekax.training.state import TrainState


def config_of(model: ModelConfig, made: dict[str, Any], steps: int) -> Config:
  """The run that the oracle made: cross-entropy alone, a constant rate.

  Args:
    model: the model.
    made: what the oracle says of its AdamW.
    steps: how many it took.
  """
  return Config(
    model=model,
    data=DataConfig(sequence_length=95, batch_size=2, num_shards=1),
    optim=OptimConfig(
      learning_rate=made['learning_rate'],
      warmup_steps=0,
      beta1=made['betas'][0],
      beta2=made['betas'][1],
      eps=made['eps'],
      weight_decay=made['weight_decay'],
      clip_norm=made['clip_norm'],
    ),
    train=TrainConfig(
      steps=steps,
      precision='float32',
      balance_weight=0.0,
      bias_update_rate=0.0,
      mtp_weight=0.0,
    ),
  )


def start(config: Config, weights: Weights) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=np.int32(0),
    params=weights.params,
    router_bias=weights.router_bias,
    opt_state=make_optimizer(config.optim).init(weights.params),
    guard=init_guard(config.train),
  )


def batch_of(tokens_BL: np.ndarray) -> Batch:
  """Next-token prediction within these tokens, each row one document."""
  inputs_BL = tokens_BL[:, :-1]
  ones_BL = np.ones_like(inputs_BL)
  return Batch(
    tokens_BL=inputs_BL,
    targets_BL=tokens_BL[:, 1:],
    positions_BL=np.cumsum(ones_BL, axis=1, dtype=np.int32) - 1,
    segments_BL=ones_BL,
    target_segments_BL=ones_BL,
  )
