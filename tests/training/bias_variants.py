"""The bias after 20 steps under every way to compute them; run as a process.

Prints {variant: [SHA-256 of the biases, smallest margin of any choice]}. The
weights stand still, so that the biases depend on the counts alone; a count can
depend on the variant only where two candidates are as close as rounding.
"""

import dataclasses
import hashlib
import json
import sys

import jax
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
from seekax.parallel import rules
from seekax.training import placement
from seekax.training.schedules import Schedule
from seekax.training.state import init_state, TrainState
from seekax.training.step import train_step

STEPS, ROWS, LENGTH = 20, 4, 8
VARIANTS = {
  'plain': {},
  'four_shards': {'mesh': 'data:4'},
  'four_micro_batches': {'micro_batches': 4},
  'scanned': {'unroll_layers': 0},
  'remat_full': {'remat': 'full'},
  'remat_paper': {'remat': 'paper'},
  'shards_scanned_remat': {
    'mesh': 'data:4',
    'unroll_layers': 0,
    'remat': 'full',
  },
}


def run_config(mesh='', micro_batches=1, unroll_layers=8, remat='none'):
  model = dataclasses.replace(
    presets.tiny(),
    vocab_size=64,
    embed_dim=32,
    num_layers=2,
    num_dense_layers=0,
    num_experts=8,
    num_expert_groups=4,
    num_kept_groups=2,
    experts_per_token=2,
    init_std=0.2,
  )
  return Config(
    model=model,
    compute=ComputeConfig(unroll_layers=unroll_layers, remat=remat),
    data=DataConfig(sequence_length=LENGTH, batch_size=ROWS, num_shards=4),
    optim=OptimConfig(learning_rate=1e-9, final_learning_rate=0.0),
    train=TrainConfig(
      steps=STEPS,
      precision='float32',
      micro_batches=micro_batches,
      bias_update_rate=0.01,
    ),
  )


def biases(config: Config, mesh: str, seed: int, state: TrainState) -> str:
  """SHA-256 of the router biases after the steps."""
  devices = mesh_lib.make_mesh(mesh or 'data:1')
  with jax.set_mesh(devices), jax.default_matmul_precision('highest'):
    # As a step returns it, or the second one would be compiled anew.
    state = jax.device_put(state, placement.state_shardings(config, devices))
    rng, schedule = np.random.default_rng(seed), Schedule(config)
    still = dataclasses.replace(schedule.rates(0), learning_rate=np.float32(0))
    for _ in range(STEPS):
      tokens = rng.integers(0, 64, (ROWS, LENGTH + 1), dtype=np.int32)
      ones = np.ones((ROWS, LENGTH), np.int32)
      positions = np.cumsum(ones, 1, dtype=np.int32) - 1
      batch = Batch(tokens[:, :-1], tokens[:, 1:], positions, ones, ones)
      parts = micro_batches(batch, config.train.micro_batches)
      spec = ('batch', 'length') if mesh else ()
      parts = jax.device_put(parts, rules.sharding(devices, spec))
      state, _ = train_step(config, state, parts, still)
    digest = hashlib.sha256()
    for name, value in sorted(state.router_bias.items()):
      digest.update(name.encode() + np.asarray(value).tobytes())
      assert np.abs(np.asarray(value)).max() > 0
    return digest.hexdigest()


def main(seed: int) -> None:
  seen: list[float] = []
  margins.watch(seen)
  found = {}
  # Step 0 is the same in all variants; what makes it is compiled once.
  state = jax.device_get(init_state(run_config()))
  for name, change in VARIANTS.items():
    seen.clear()
    config = run_config(**change)
    digest = biases(config, change.get('mesh', ''), seed, state)
    jax.effects_barrier()
    assert seen
    found[name] = [digest, min(seen)]
  print(json.dumps(found))


if __name__ == '__main__':
  main(int(sys.argv[1]))
