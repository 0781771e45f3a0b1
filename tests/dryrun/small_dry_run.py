"""A dry run on eight devices, as JSON; run as a process.

Virtual ones of the CPU, or those of a topology.
"""

import dataclasses
import json
import sys

from seekax.configuration import presets
from seekax.configuration.config import Config, from_config_dict
from seekax.configuration.mesh import mesh_sizes
from seekax.dryrun import compile as compile_lib
from seekax.dryrun import gpus, sharding
from seekax.parallel import exchange_levels


def run_config(mesh: str) -> Config:
  run = presets.shrink_run(presets.run_of(presets.tiny()))
  run.parallel.mesh = mesh
  run.train.precision = 'bfloat16'
  run.data.batch_size = 32
  run.train.micro_batches = 2
  # A scan, so that layers are counted and not written out.
  run.model.num_layers = 3
  run.compute.unroll_layers = 0
  return from_config_dict(run)


def moved(config) -> dict[str, float]:
  """Bytes of weights that a device gathers, and of gradients that it scatters.

  Of leaves whose masters are split over all ranks that share the weight.
  """
  found = {'all-gather': 0.0, 'reduce-scatter': 0.0}
  for one in sharding.placements(config, 8):
    masters = one.gradient_bytes / one.master_bytes
    found['all-gather'] += one.weight_bytes * (1 - 1 / masters)
    found['reduce-scatter'] += one.gradient_bytes * (1 - 1 / masters)
  return found


def main(mesh: str, topology: str = '') -> None:
  config = run_config(mesh)
  found = compile_lib.dry_run(
    config, topology=gpus.parse(topology) if topology else None
  )
  sizes = mesh_sizes(mesh, 8)
  rows = config.data.batch_size // config.train.micro_batches // 8
  levels = exchange_levels.levels(
    config.model, config.compute, sizes, rows * config.data.sequence_length
  )
  print(
    json.dumps(
      {
        **dataclasses.asdict(found),
        'moved': moved(config),
        'exchanged': {
          level.axis: exchange_levels.bytes_sent(
            level, config.model.embed_dim, config.model.experts_per_token, 2
          )
          * (config.model.num_expert_layers + config.model.mtp_depth)
          * config.train.micro_batches
          for level in levels
        },
      }
    )
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
