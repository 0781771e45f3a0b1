"""Law: the backend of the grouped matmul doesn't change what is learned."""

import dataclasses

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seekax.configuration import presets
from seekax.configuration.compute import ComputeConfig
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig
from seekax.data.pipeline import Batch
from seekax.training.schedules import Schedule
from seekax.training.state import init_state, TrainState
from seekax.training.step import train_step

# Those that run on a CPU.
BACKENDS = ('blocked', 'ragged', 'dense')
STEPS, BATCH, LENGTH, VOCABULARY = 50, 8, 32, 64


def run_config(backend: str) -> Config:
  """Of the parts of `tiny` those that the experts meet, to compile quickly."""
  model = dataclasses.replace(
    presets.tiny(),
    vocab_size=VOCABULARY,
    embed_dim=32,
    num_layers=1,
    num_dense_layers=0,
    mtp_depth=0,
    num_experts=8,
    experts_per_token=2,
  )
  return Config(
    model=model,
    compute=ComputeConfig(grouped_matmul=backend),
    data=DataConfig(sequence_length=LENGTH, batch_size=BATCH),
    optim=OptimConfig(learning_rate=3e-3, warmup_steps=5),
    train=TrainConfig(steps=STEPS, precision='float32'),
  )


def batches() -> list[Batch]:
  """Steps of 1 to 3 from token to token: half of it can be learned.

  Low tokens come more often, so that experts' loads are uneven.
  """
  rng = np.random.default_rng(0)
  made = []
  for _ in range(STEPS):
    start = rng.integers(0, 8, (BATCH, 1))
    walk = np.cumsum(rng.integers(1, 4, (BATCH, LENGTH)), axis=1)
    tokens = np.concatenate([start, start + walk], axis=1) % VOCABULARY
    tokens = tokens.astype(np.int32)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
    ones = np.ones_like(positions)
    made.append(Batch(tokens[:, :-1], tokens[:, 1:], positions, ones, ones))
  return made


def losses(backend: str, start: TrainState) -> np.ndarray:
  """The main loss of every step, nats per token."""
  config, logged = run_config(backend), []
  state = jax.tree.map(jnp.copy, start)  # The first step takes its buffers.
  schedule = Schedule(config)
  for number, batch in enumerate(batches()):
    rates = schedule.rates(number)
    state, metrics = train_step(config, state, [batch], rates)
    logged.append(float(metrics.loss))
  return np.array(logged)


class BackendsTest(absltest.TestCase):
  @pytest.mark.slow
  def test_backends_train_alike(self):
    start = init_state(run_config('dense'))
    runs = {backend: losses(backend, start) for backend in BACKENDS}
    reference = runs['dense']
    # It learns, so that there is something to disagree on.
    self.assertLess(reference[-1], 0.7 * reference[0])
    for backend, logged in runs.items():
      first = abs(logged[0] / reference[0] - 1)
      self.assertLessEqual(first, 1e-5, backend)
      last = abs(logged[-1] - reference[-1])
      self.assertLessEqual(last, 0.01, backend)


if __name__ == '__main__':
  absltest.main()
