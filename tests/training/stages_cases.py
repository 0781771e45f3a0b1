"""Weights to stages and back on four devices; run as a process.

Prints for a width that the stages divide and one that they don't what a stack
and the rest come back as, over what they were.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from seekax.configuration import presets
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.model.parameters import init_params
from seekax.parallel import mesh as mesh_lib
from seekax.training import placement
from seekax.training.stages import Stages


def run_case(width: int):
  model = dataclasses.replace(
    presets.tiny(), embed_dim=width, num_layers=4, mtp_depth=1
  )
  mesh = mesh_lib.make_mesh('data:2,pipeline:2')
  params = init_params(model, 0)
  config = Config(model=model, data=DataConfig(sequence_length=32))
  shardings = placement.state_shardings(config, mesh).params
  for key in ('embedding', 'head'):
    del params[key], shardings[key]
  found: dict[str, Any] = {}

  @jax.jit
  def there_and_back(params):
    stages = Stages(params, model, 2)
    found['counts'] = stages.counts
    staged = stages.weights(params)
    staged = jax.tree.map(
      jax.lax.with_sharding_constraint, staged, stages.specs
    )
    return stages.gradients(staged)

  with jax.set_mesh(mesh):
    back = there_and_back(jax.device_put(params, shardings))
  found['same_place'] = jax.tree.all(
    jax.tree.map(
      lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim),
      back,
      shardings,
    )
  )
  # Biases and scales start as 0 and 1.
  times = jax.tree.map(
    lambda x, y: sorted({*(np.asarray(y)[x != 0] / x[x != 0]).tolist()}),
    jax.device_get(params),
    jax.device_get(back),
  )
  found['stack'] = jax.tree.leaves(times.pop('expert_layers'))
  found['others'] = jax.tree.leaves(times)
  return found


if __name__ == '__main__':
  print(json.dumps({width: run_case(width) for width in (64, 63)}))
