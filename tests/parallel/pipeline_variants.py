"""Three steps of SGD in a pipeline of virtual devices; run as a process.

Reads variants from argv as JSON, {name: {'mesh': ..., key: value}}, and prints
how far each is from the steps of one device.
"""

import dataclasses
import functools
import json
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import margins
import mesh_variants
import numpy as np

from seekax.configuration.config import Config
from seekax.configuration.mesh import parse_mesh
from seekax.data.pipeline import micro_batches
from seekax.machine import compiling
from seekax.model.weights import Weights
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
  'embed_dim',
  'num_dense_layers',
  'router',
  'attention',
  'ffn',
  'mtp_depth',
  'parts',
  'steps',
)


def run_config(parts: int = PARTS, **changes: Any) -> Config:
  changes = {'num_layers': 6} | changes
  config = mesh_variants.run_config(**changes)
  train = dataclasses.replace(
    config.train, micro_batches=parts, z_loss_weight=1e-3
  )
  return dataclasses.replace(config, train=train)


# The gradient and sums of a step, from its micro-batches.
def _of_one(params, bias, batch, config, weight):
  def objective(params):
    return loss_sums(Weights(params, bias), batch, config, weight)

  return jax.grad(objective, has_aux=True)(params)


_one = compiling.jit(_of_one, static_argnums=3)


def one_by_one(config, params, bias, parts, weight):
  """Summed over micro-batches, one after the other."""
  total = None
  for part in parts:
    new = jax.block_until_ready(_one(params, bias, part, config, weight))
    total = jax.tree.map(jnp.add, total, new) if total else new
  return total


@functools.partial(compiling.jit, static_argnums=0)
def together(config, params, bias, parts, weight):
  """Those of a pipeline."""
  return pipelined_gradients(Weights(params, bias), parts, config, weight)


@jax.jit
def descend(params, gradients, tokens):
  """The weights after a step of SGD."""
  return jax.tree.map(
    lambda x, g: x - mesh_variants.RATE * g / tokens, params, gradients
  )


def train(
  config: Config, mesh: str, function, state: TrainState, crowded: bool = False
) -> dict[str, Any]:
  """Gradients and sums of the first step, on the host; losses of all."""
  count = math.prod(parse_mesh(mesh).values())
  devices = mesh_lib.make_mesh(mesh, jax.devices()[:count])
  found: dict[str, Any] = {'losses': []}
  with jax.set_mesh(devices), jax.default_matmul_precision('highest'):
    shardings = placement.state_shardings(config, devices)
    state = jax.device_put(state, shardings)
    params, bias = state.params, state.router_bias
    if crowded:
      # Every token wants the first two experts, which are on one device.
      push = jnp.zeros(mesh_variants.MODEL.num_experts).at[:2].set(100.0)
      bias = jax.tree.map(lambda b: b + push, bias)
      bias = jax.device_put(bias, shardings.router_bias)
    place = rules.sharding(devices, ('batch', 'length'))
    for step in range(config.train.steps):
      batch = mesh_variants.make_batch(step, config.data.sequence_length)
      parts = micro_batches(batch, config.train.micro_batches)
      gradients, sums = jax.block_until_ready(
        function(
          config,
          params,
          bias,
          jax.device_put(parts, place),
          Schedule(config).rates(0).mtp_weight,
        )
      )
      if not step:
        jax.effects_barrier()
        found['margin'] = min(mesh_variants.MARGINS, default=None)
        found['first'] = jax.device_get((gradients, sums))
      found['losses'].append(float(sums.main / sums.tokens))
      params = jax.block_until_ready(descend(params, gradients, sums.tokens))
  mesh_variants.MARGINS.clear()
  return found


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
  """How far a run is from that of one device."""
  (mine, sums), (right, right_sums) = other['first'], one['first']
  distances = jax.tree.map(
    lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)), mine, right
  )
  worst = max(
    (distance, jax.tree_util.keystr(path))
    for path, distance in jax.tree_util.tree_leaves_with_path(distances)
  )
  return {
    'first_loss': abs(other['losses'][0] / one['losses'][0] - 1),
    'last_loss': abs(other['losses'][-1] / one['losses'][-1] - 1),
    'loss_fell': one['losses'][-1] < one['losses'][0],
    'sums': {
      field.name: float(
        np.max(
          np.abs(getattr(sums, field.name) - getattr(right_sums, field.name))
          / np.maximum(np.abs(getattr(right_sums, field.name)), 1e-30),
          initial=0,
        )
      )
      for field in dataclasses.fields(sums)
      # Exchanges are counted where there are other devices.
      if field.name not in ('load', 'rounds', 'exchanges')
    },
    'gradient': worst[0],
    'leaf': worst[1],
    'same_load': jax.tree.all(
      jax.tree.map(np.array_equal, sums.load, right_sums.load)
    ),
    'margin': one['margin'],
    # For stages alone; ranks of a batch count their own.
    'same_exchanges': bool(
      (sums.rounds, sums.exchanges) == (right_sums.rounds, right_sums.exchanges)
    ),
  }


def main(variants: dict[str, dict[str, Any]]) -> None:
  margins.watch(mesh_variants.MARGINS)
  found, alone = {}, {}
  for name, change in variants.items():
    crowded = change.get('crowded', False)
    same = {key: value for key, value in change.items() if key in SHARED}
    config = run_config(**same)
    key = json.dumps(same, sort_keys=True)
    state = mesh_variants.start(config)
    if key not in alone:
      alone[key] = train(config, 'data:1', one_by_one, state, crowded)
    other = train(
      run_config(**change), change['mesh'], together, state, crowded
    )
    found[name] = compare(alone[key], other)
  print(json.dumps({'variants': found}))


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
