"""One step, and three of SGD, on meshes of virtual devices; run as a process.

Reads variants from argv as JSON, {name: {'mesh': ..., key: value}}, and prints
for each what it did that one device does not: see `compare`.
"""

import dataclasses
import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import margins
import numpy as np

from seekax.configuration import presets
from seekax.configuration.compute import ComputeConfig
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig
from seekax.data.pipeline import Batch, micro_batches
from seekax.parallel import mesh as mesh_lib
from seekax.parallel import ranks, rules
from seekax.training import placement
from seekax.training.schedules import Schedule
from seekax.training.state import abstract_state, TrainState
from seekax.training.step import accumulate, nothing

# The last loss shows what the gradient at changed weights was.
ROWS, LENGTH, PARTS, STEPS, RATE = 16, 16, 2, 3, 0.5
# Keys of variants that one device is given too.
SHARED = ('precision', 'crowded', 'attention', 'init_std', 'length', 'steps')
_COMPUTE = [field.name for field in dataclasses.fields(ComputeConfig)]
MODEL = dataclasses.replace(
  presets.tiny(),
  vocab_size=64,
  embed_dim=32,
  num_layers=2,
  num_dense_layers=1,
  num_heads=4,
  mlp_dim=32,
  expert_dim=16,
  num_experts=8,
  num_expert_groups=4,
  num_kept_groups=2,
  experts_per_token=2,
  mtp_depth=1,
  init_std=0.2,
  context_length=512,
)


def run_config(
  precision='float32', length=LENGTH, steps=STEPS, **changes: Any
) -> Config:
  changes.pop('mesh', None)
  changes.pop('crowded', None)
  computed = {k: changes.pop(k) for k in _COMPUTE if k in changes}
  return Config(
    model=dataclasses.replace(MODEL, **changes),
    compute=ComputeConfig(**computed),
    data=DataConfig(
      sequence_length=length, batch_size=ROWS, isolate_documents=True
    ),
    optim=OptimConfig(),
    train=TrainConfig(
      steps=steps,
      precision=precision,
      micro_batches=PARTS,
      balance_weight=0.01,
    ),
  )


def make_batch(seed: int, length: int) -> Batch:
  """Documents of unequal lengths, whose ends are no targets."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, 64, (ROWS, length + 1), dtype=np.int32)
  ends = rng.random((ROWS, length + 1)) < np.linspace(0, 0.4, ROWS)[:, None]
  segments = np.cumsum(ends, axis=1, dtype=np.int32)
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), (ROWS, length))
  return Batch(
    tokens[:, :-1], tokens[:, 1:], positions, segments[:, :-1], segments[:, 1:]
  )


# The first whose choices are clear in all variants, here and of pipelines.
SEED = 4
# Of the run that is going on.
MARGINS: list[float] = []


@functools.cache
def start(config: Config) -> TrainState:
  """Step 0 on the host, drawn there: no program has to be compiled for it."""
  rng = np.random.default_rng(SEED)

  def draw(path, leaf):
    if path[-1].key == 'scale':
      return np.ones(leaf.shape, leaf.dtype)
    values = config.model.init_std * rng.standard_normal(leaf.shape)
    return values.astype(leaf.dtype)

  state = abstract_state(config)
  params = jax.tree_util.tree_map_with_path(draw, state.params)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
  return zeros.replace(params=params)


@functools.partial(jax.jit, static_argnums=0)
def descend(config, params, gradients, tokens):
  """The mean gradient, and the weights after a step of SGD."""
  names = placement.names_of(params, config.model)
  gradients = ranks.summed(gradients, names)
  mean = jax.tree.map(lambda g: g / tokens, gradients)
  return mean, jax.tree.map(lambda x, g: x - RATE * g, params, mean)


def train(
  config: Config, mesh: str, crowded: bool, state: TrainState
) -> dict[str, Any]:
  """Losses of SGD steps; gradients, loads and margin of the first."""
  MARGINS.clear()
  found: dict[str, Any] = {'losses': []}
  devices = mesh_lib.make_mesh(mesh)
  with jax.set_mesh(devices), jax.default_matmul_precision('highest'):
    shardings = placement.state_shardings(config, devices)
    state = jax.device_put(state, shardings)
    if crowded:
      # Every token wants the first two experts, which are on one device.
      push = jnp.zeros(MODEL.num_experts).at[:2].set(100.0)
      bias = jax.tree.map(lambda b: b + push, state.router_bias)
      bias = jax.device_put(bias, shardings.router_bias)
      state = dataclasses.replace(state, router_bias=bias)
    rates = Schedule(config).rates(0)
    place = rules.sharding(devices, ('batch', 'length'))
    for step in range(config.train.steps):
      batch = make_batch(step, config.data.sequence_length)
      parts = micro_batches(batch, PARTS)
      parts = jax.device_put(parts, place)
      total = nothing(config)
      for part in parts:
        total = accumulate(config, state, part, rates, total)
        jax.block_until_ready(total)
      sums = total.sums
      mean, params = jax.block_until_ready(
        descend(config, state.params, total.gradients, sums.tokens)
      )
      found['losses'].append(float(sums.main / sums.tokens))
      if step == 0:
        jax.effects_barrier()
        found['margin'] = min(MARGINS)
        found['gradients'] = jax.device_get(mean)
        found['load'] = jax.device_get(sums.load)
        found['sharded'] = sum(
          not x.sharding.is_fully_replicated for x in jax.tree.leaves(mean)
        )
      state = dataclasses.replace(state, params=params)
  return found


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
  """How far a run is from that of one device."""
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(one['gradients']),
    jax.tree.leaves(other['gradients']),
    strict=True,
  )
  worst = max(
    (float(np.linalg.norm(a - b) / np.linalg.norm(a)), jax.tree_util.keystr(p))
    for (p, a), b in pairs
  )
  return {
    'first_loss': abs(other['losses'][0] / one['losses'][0] - 1),
    'last_loss': abs(other['losses'][-1] / one['losses'][-1] - 1),
    'gradient': worst[0],
    'leaf': worst[1],
    'same_load': all(
      bool(np.array_equal(one['load'][key], other['load'][key]))
      for key in one['load']
    ),
    'margin': min(one['margin'], other['margin']),
    'sharded_leaves': other['sharded'],
    'loss_fell': one['losses'][-1] < one['losses'][0],
  }


def main(variants: dict[str, dict[str, Any]]) -> None:
  margins.watch(MARGINS)
  found, alone = {}, {}
  for name, change in variants.items():
    crowded = change.get('crowded', False)
    # What one device does is the same with or without an exchange.
    same = {key: value for key, value in change.items() if key in SHARED}
    key, state = json.dumps(same, sort_keys=True), start(run_config(**same))
    if key not in alone:
      alone[key] = train(run_config(**same), 'data:1', crowded, state)
    other = train(run_config(**change), change['mesh'], crowded, state)
    found[name] = compare(alone[key], other)
  print(json.dumps({'variants': found}))


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
