"""Bytes of the exchange of tokens on four devices, as JSON; run as a process.

Read from the partitioned program of a training step, and by the formula.
"""

import json

from seekax.configuration import presets
from seekax.configuration.config import from_config_dict
from seekax.dryrun import compile as compile_lib
from seekax.planning import traffic
from seekax.planning.layout import Layout


def main() -> None:
  run = presets.shrink_run(presets.run_of(presets.tiny()))
  run.parallel.mesh = 'expert_node:2,expert:2'
  run.train.precision = 'bfloat16'
  run.train.micro_batches = 1
  run.model.num_layers = 3
  run.compute.unroll_layers = 0
  config = from_config_dict(run)
  found = compile_lib.dry_run(config)
  rows = config.data.batch_size // 4
  per_layer = traffic.sent_by_program(
    config.model,
    Layout(expert_node=2, expert=2),
    rows * config.data.sequence_length,
  )
  layers = config.model.num_expert_layers + config.model.mtp_depth
  read = {
    row.axis: row.bytes for row in found.collectives if row.kind == 'all-to-all'
  }
  print(
    json.dumps(
      {
        'formula': {axis: layers * sent for axis, sent in per_layer.items()},
        'read': {axis: read.get(axis) for axis in per_layer},
      }
    )
  )


if __name__ == '__main__':
  main()
