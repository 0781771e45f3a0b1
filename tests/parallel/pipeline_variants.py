"""One step in a pipeline of virtual devices beside one device's; a process.

Reads variants from argv as JSON, {name: {'mesh': ..., key: value}}, and prints
how far each is from the step of one device.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import margins as margins_lib
import mesh_variants
import numpy as np

from seekax.config import Config
from seekax.data.pipeline import micro_batches
from seekax.ops import compiling
from seekax.parallel import mesh as mesh_lib
from seekax.parallel import rules
from seekax.training import placement
from seekax.training.losses import loss_sums
from seekax.training.pipelined import pipelined_gradients
from seekax.training.schedules import Schedule
from seekax.training.state import TrainState

PARTS = 4
# Keys of variants that one device is given too.
SHARED = (
  'crowded',
  'init_std',
  'length',
  'precision',
  'num_layers',
  'attention',
  'ffn',
  'mtp_depth',
  'parts',
)


def run_config(parts: int = PARTS, **changes: Any) -> Config:
  changes = {'num_layers': 6} | changes
  config = mesh_variants.run_config(**changes)
  train = dataclasses.replace(
    config.train, micro_batches=parts, z_loss_weight=1e-3
  )
  return dataclasses.replace(config, train=train)


def one_by_one(config, params, bias, parts, weight):
  """Summed over micro-batches, one after the other."""
  one = compiling.jit(jax.grad(loss_sums, has_aux=True), static_argnums=3)
  total = None
  for part in parts:
    new = jax.block_until_ready(one(params, bias, part, config, weight))
    total = jax.tree.map(jnp.add, total, new) if total else new
  return total


def together(config, params, bias, parts, weight):
  """Those of a pipeline."""

  def both(params, bias, parts, weight):
    return pipelined_gradients(params, bias, parts, config, weight)

  return compiling.jit(both)(params, bias, parts, weight)


def gradients(
  config: Config, mesh: str, function, state: TrainState, crowded: bool = False
) -> Any:
  """Gradients and sums of a step with micro-batches, on the host."""
  devices = mesh_lib.make_mesh(mesh)
  with jax.set_mesh(devices), jax.default_matmul_precision('highest'):
    shardings = placement.state_shardings(config, devices)
    state = jax.device_put(state, shardings)
    if crowded:
      # Every token wants the first two experts, which are on one device.
      push = jnp.zeros(mesh_variants.MODEL.num_experts).at[:2].set(100.0)
      bias = jax.tree.map(lambda b: b + push, state.router_bias)
      bias = jax.device_put(bias, shardings.router_bias)
      state = state.replace(router_bias=bias)
    place = rules.sharding(devices, ('batch', 'length'))
    batch = mesh_variants.make_batch(0, config.data.sequence_length)
    parts = micro_batches(batch, config.train.micro_batches)
    found = function(
      config,
      state.params,
      state.router_bias,
      jax.device_put(parts, place),
      Schedule(config).rates(0).mtp_weight,
    )
    jax.block_until_ready(found)
    jax.effects_barrier()
    return jax.device_get(found)


def compare(one: Any, other: Any) -> dict[str, Any]:
  """How far gradients and sums are from those of one device."""
  (mine, sums), (right, right_sums) = other, one
  distances = jax.tree.map(
    lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)), mine, right
  )
  worst = max(
    (distance, jax.tree_util.keystr(path))
    for path, distance in jax.tree_util.tree_leaves_with_path(distances)
  )
  return {
    'loss': abs(float(sums.main / right_sums.main) - 1),
    'sums': {
      field.name: float(
        np.max(
          np.abs(getattr(sums, field.name) - getattr(right_sums, field.name))
          / np.maximum(np.abs(getattr(right_sums, field.name)), 1e-30),
          initial=0,
        )
      )
      for field in dataclasses.fields(sums)
      if field.name != 'load'
    },
    'gradient': worst[0],
    'leaf': worst[1],
    'same_load': jax.tree.all(
      jax.tree.map(np.array_equal, sums.load, right_sums.load)
    ),
  }


def main(variants: dict[str, dict[str, Any]]) -> None:
  margins_lib.watch(mesh_variants.MARGINS)
  found, alone, margins = {}, {}, {}
  for name, change in variants.items():
    crowded = change.get('crowded', False)
    same = {key: value for key, value in change.items() if key in SHARED}
    config = run_config(**same)
    key = json.dumps(same, sort_keys=True)
    state = mesh_variants.start(config)
    if key not in alone:
      alone[key] = gradients(config, 'data:1', one_by_one, state, crowded)
      margins[key] = min(mesh_variants.MARGINS, default=None)
      mesh_variants.MARGINS.clear()
    other = gradients(
      run_config(**change), change['mesh'], together, state, crowded
    )
    mesh_variants.MARGINS.clear()
    found[name] = compare(alone[key], other)
    # Of one device: stages that have no micro-batch yet route zeros.
    found[name]['margin'] = margins[key]
  print(json.dumps({'variants': found}))


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
