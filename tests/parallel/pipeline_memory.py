"""Prints what programs of 4 and 16 micro-batches need; run as a process."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pipeline_variants

from reference import cases
from seekax.data.pipeline import Batch
from seekax.machine import compiling
from seekax.parallel import mesh as mesh_lib
from seekax.parallel import rules
from seekax.training import placement
from seekax.training.pipelined import pipelined_gradients
from seekax.training.state import abstract_state

ROWS, LENGTH = 4, 128


def temporaries(parts: int) -> int:
  """Bytes per device."""
  config = pipeline_variants.run_config(
    num_layers=4, unroll_layers=0, length=LENGTH
  )
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, batch_size=ROWS * parts),
    train=dataclasses.replace(config.train, micro_batches=parts),
  )
  devices = mesh_lib.make_mesh('pipeline:2')
  with jax.set_mesh(devices):
    state = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract_state(config),
      placement.state_shardings(config, devices),
    )
    tokens = jax.ShapeDtypeStruct(
      (ROWS, LENGTH),
      jnp.int32,
      sharding=rules.sharding(devices, ('batch', 'length')),
    )

    def gradients(weights, batch):
      return pipelined_gradients(weights, batch, config, 0.3)

    compiled = (
      compiling.jit(gradients)
      .lower(state.weights, [Batch(*(5 * [tokens]))] * parts)
      .compile()
    )
  return cases.temporaries(compiled)


if __name__ == '__main__':
  needed = {parts: temporaries(parts) for parts in (4, 16)}
  print(json.dumps(needed | {'micro_batch_bytes': 5 * 4 * ROWS * LENGTH}))
