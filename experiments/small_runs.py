"""Training of small models: sizes, configs, runs, held-out measurements.

Letters: B batch, L positions, N layers, E experts.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import pathlib
import sys
from typing import Any

import jax
import numpy as np

import script
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.model import ModelConfig
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig
from seekax.data.pipeline import Batch
from seekax.inference.scoring import all_logits
from seekax.machine import compiling, host_memory
from seekax.model.parameters import init_weights
from seekax.model.transformer import Transformer
from seekax.training import losses as losses_lib
from seekax.training import step as step_lib
from seekax.training.schedules import Schedule
from seekax.training.state import start_from, TrainState
from small_corpus import ALL_DOMAINS, batch_of, DOMAINS, draw_rows, Rows, VOCAB
import verdicts

# Far from the seeds of training, which are small.
_HELDOUT_SEED = 10_000


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is trained and measured."""

  seeds: int = 3
  steps: int = 400
  rows: int = 16
  length: int = 64
  width: int = 64
  heldout: int = 16  # batches


SMOKE = Size(seeds=2, steps=4, rows=2, length=16, width=16, heldout=1)


def model_of(size: Size, **changes: Any) -> ModelConfig:
  """MLA and sigmoid-routed experts, no MTP, unless `changes` say otherwise."""
  small: dict[str, Any] = dict(
    vocab_size=VOCAB,
    embed_dim=size.width,
    num_layers=3 if size != SMOKE else 1,
    num_dense_layers=1 if size != SMOKE else 0,
    context_length=size.length,
    num_heads=4,
    query_latent_dim=0,
    kv_latent_dim=size.width // 2,
    nope_head_dim=16,
    rope_head_dim=16,
    value_head_dim=16,
    mlp_dim=2 * size.width,
    expert_dim=size.width // 2,
    num_experts=16,
    experts_per_token=4,
    num_expert_groups=1,
    num_kept_groups=1,
    routed_scale=1.0,
    mtp_depth=0,
    init_std=0.02,
    rope_scaling='none',
  )
  return ModelConfig(**(small | changes))


def config_of(
  size: Size, model: ModelConfig, rate: float = 3e-3, **train: Any
) -> Config:
  """A run of `size`: warm-up, then a cosine to a tenth of the rate."""
  rates: dict[str, Any] = {'balance_weight': 0.0, 'bias_update_rate': 0.01}
  return Config(
    model=model,
    data=DataConfig(
      sequence_length=size.length, batch_size=size.rows, num_shards=1
    ),
    optim=OptimConfig(
      learning_rate=rate,
      final_learning_rate=rate / 10,
      warmup_steps=size.steps // 10,
      constant_tokens=0,
    ),
    train=TrainConfig(
      steps=size.steps,
      precision='float32',
      **rates | train,
    ),
  )


def training_batches(
  size: Size, seed: int, domains: tuple[str, ...] = DOMAINS
) -> Iterator[Batch]:
  """The batches of a seed, the same for every arm."""
  rng = np.random.default_rng(seed)
  for _ in range(size.steps):
    yield batch_of(draw_rows(rng, size.rows, size.length, domains).tokens)


def heldout_rows(size: Size, domains: tuple[str, ...] = DOMAINS) -> list[Rows]:
  """The held-out batches, the same for every seed."""
  rng = np.random.default_rng(_HELDOUT_SEED)
  return [
    draw_rows(rng, size.rows, size.length, domains, heldout=True)
    for _ in range(size.heldout)
  ]


# Compiled once for all seeds.
_initial_weights = jax.jit(init_weights, static_argnums=0)
_all_logits = compiling.jit(all_logits, static_argnums=0)


def initial_state(config: Config, seed: int) -> TrainState:
  """The state at step 0 of a seed; config.train.seed plays no part."""
  return start_from(config, _initial_weights(config.model, seed))


def _as_compiled(config: Config) -> Config:
  """The same config for runs that differ only in what the schedule hands over.

  Such runs share one compiled program.
  """
  plain = TrainConfig()
  return dataclasses.replace(
    config,
    optim=dataclasses.replace(
      config.optim, learning_rate=1.0, final_learning_rate=1.0
    ),
    train=dataclasses.replace(
      config.train,
      steps=plain.steps,
      bias_update_rate=plain.bias_update_rate,
      mtp_weight=plain.mtp_weight,
    ),
  )


def train(
  config: Config,
  state: TrainState,
  batches: Iterable[Batch],
  watch: Callable[[int, TrainState], None] = lambda *_: None,
) -> tuple[TrainState, list[step_lib.Metrics]]:
  """The library's training step on every batch; `state` is donated.

  After each step `watch` is shown how many steps were taken, and the state.

  Returns:
    (the final state, the metrics of every step on the host).
  """
  schedule, found, compiled = Schedule(config), [], _as_compiled(config)
  for number, batch in enumerate(batches):
    rates = schedule.rates(number)
    state, metrics = step_lib.train_step(compiled, state, [batch], rates)
    found.append(metrics)
    watch(number + 1, state)
  return state, jax.device_get(found)


@functools.partial(compiling.jit, static_argnums=0)
def _loss_sums(config, weights, batch):
  return losses_lib.loss_sums(weights, batch, config)[1]


def evaluate(
  config: Config,
  state: TrainState,
  rows: list[Rows],
  sums: Callable[..., losses_lib.LossSums] = _loss_sums,
) -> tuple[float, np.ndarray]:
  """(Nats per token over all rows, load [N, E]; [0, 0] without experts).

  `sums` takes (config, weights, batch).
  """
  found = [
    jax.device_get(sums(config, state.weights, batch_of(part.tokens)))
    for part in rows
  ]
  loss = sum(x.main for x in found) / sum(x.tokens for x in found)
  if not found[0].load:
    return float(loss), np.zeros((0, 0))
  return float(loss), np.sum([x.load['layers'] for x in found], axis=0)


def accuracy(
  config: Config, state: TrainState, rows: list[Rows]
) -> script.Numbers:
  """How often the likeliest token is the answer, by domain with answers."""
  # MTP modules answer nothing.
  model = Transformer(dataclasses.replace(config.model, mtp_depth=0))
  right, asked = np.zeros((2, len(ALL_DOMAINS)))
  for part in rows:
    logits_BLV, _ = _all_logits(model, state.weights, part.tokens[:, :-1])
    best_BL = np.asarray(logits_BLV).argmax(axis=-1)
    answers_BL = part.answers[:, 1:]
    hit_BL = answers_BL & (best_BL == part.tokens[:, 1:])
    np.add.at(right, part.domain_B, hit_BL.sum(axis=1))
    np.add.at(asked, part.domain_B, answers_BL.sum(axis=1))
  return {
    name: float(right[k] / asked[k])
    for k, name in enumerate(ALL_DOMAINS)
    if asked[k]
  }


def say(arm: str, seed: int, **numbers: float) -> None:
  """Prints progress to stderr."""
  words = ', '.join(f'{name} {value:.4f}' for name, value in numbers.items())
  print(f'{arm}, seed {seed}: {words}', file=sys.stderr, flush=True)


def seed_by_seed(arms: Iterable[str], seeds: int) -> list[tuple[str, int]]:
  """Jobs (arm, seed) in an order that leaves pairs if a run is interrupted."""
  return [(arm, seed) for seed in range(seeds) for arm in arms]


def publish(
  train_one: Callable[[str, int], script.Numbers],
  jobs: Iterable[tuple[str, int]],
  claims: Callable[[script.Measured], list[verdicts.Claim]],
  draw: Callable[..., None],
  stem: pathlib.Path,
  kind: str = 'runs',
) -> None:
  """Trains the jobs (arm, seed) that are missing, then judges and draws.

  Args:
    train_one: trains an arm with a seed; returns the numbers to keep.
    jobs: all jobs that are wanted.
    claims: see `verdicts.publish_jobs`.
    draw: see there.
    stem: see there.
    kind: see there.
  """
  host_memory.keep_freed_memory()
  wanted = {
    f'{arm}, seed {seed}': functools.partial(train_one, arm, seed)
    for arm, seed in jobs
  }
  verdicts.publish_jobs(wanted, kind, claims, draw, stem)
