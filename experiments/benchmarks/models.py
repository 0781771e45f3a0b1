"""Models a and b of the benchmarks, and tokens to train them on; no JAX."""

import dataclasses
import random

from seekax.configuration.model import ModelConfig
from seekax.configuration.presets import tiny


def model_a() -> ModelConfig:
  """18M parameters: 32 experts top-4, groups 4/2."""
  return ModelConfig(
    vocab_size=512,
    embed_dim=256,
    num_layers=6,
    num_dense_layers=1,
    context_length=1024,
    num_heads=4,
    query_latent_dim=128,
    kv_latent_dim=64,
    nope_head_dim=64,
    rope_head_dim=32,
    value_head_dim=64,
    mlp_dim=704,
    expert_dim=128,
    num_experts=32,
    experts_per_token=4,
    num_expert_groups=4,
    num_kept_groups=2,
    mtp_depth=0,
    init_std=0.02,
    rope_scaling='none',
  )


def model_b() -> ModelConfig:
  """Model a with 64 experts top-6, 2 shared, no groups."""
  return dataclasses.replace(
    model_a(),
    num_experts=64,
    experts_per_token=6,
    num_shared_experts=2,
    num_expert_groups=1,
    num_kept_groups=1,
  )


def smallest() -> ModelConfig:
  """The smoke form's model, which mostly waits for the compiler."""
  return dataclasses.replace(
    tiny(), num_layers=1, num_dense_layers=0, mtp_depth=0, rope_scaling='none'
  )


class Tokens:
  """Random rows, the same for both sides."""

  def __init__(self, vocabulary: int):
    self._draw, self._vocabulary = random.Random(0), vocabulary

  def rows(self, batch: int, length: int) -> list[list[int]]:
    return [
      [self._draw.randrange(self._vocabulary) for _ in range(length)]
      for _ in range(batch)
    ]
