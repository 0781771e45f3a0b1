"""Compiles the real training step for a mesh of devices that needn't exist.

The devices are virtual ones of the CPU, or GPUs that are only described; arrays
have shapes and shardings but no values.
"""

from collections import Counter
from collections.abc import Callable
import dataclasses
import math
import pathlib
import re
import resource
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from seekax.arrays import PyTree
from seekax.configuration.config import Config
from seekax.data.pipeline import Batch
from seekax.dryrun import collectives, gpus, sharding
from seekax.ops import backends, devices
from seekax.parallel import pipeline, ranks, rules
from seekax.parallel.mesh import mesh_of
from seekax.training import placement
from seekax.training.schedules import Rates, Schedule
from seekax.training.state import abstract_state
from seekax.training.step import (
  accumulate,
  apply,
  gather,
  nothing,
  pipelined_step,
)

_CUSTOM_CALL = re.compile(r'custom_call_target="([^"]+)"')


@dataclasses.dataclass(frozen=True)
class DryRun:
  """The compiler's figures for a step, per device.

  Attributes:
    compile_seconds: time of tracing, partitioning and compiling.
    host_peak_bytes: peak memory of this process.
    arguments_bytes: arguments of the update: masters, moments and gradients (a
      pipeline's step is one program, where gradients count as temporaries).
    outputs_bytes: outputs of the update.
    state_bytes: expected size of the arguments, which `sharding` computes from
      names, shapes and mesh sizes alone.
    temporaries_bytes: temporaries of a micro-batch's passes, or of a pipeline's
      step; None where this JAX version's figures for a CPU mean nothing.
    micro_batches: number of micro-batches per step.
    collectives: collectives of a whole step: its micro-batches and its update.
    update_collectives: collectives of the update alone; empty for a pipeline,
      whose update can't be told apart.
    backends: the implementations that were compiled, and why.
    custom_calls: custom calls of the passes in the compiled program, by target:
      kernels that XLA didn't generate.
  """

  compile_seconds: float
  host_peak_bytes: int
  arguments_bytes: int
  outputs_bytes: int
  state_bytes: int
  temporaries_bytes: int | None
  micro_batches: int
  collectives: list[collectives.Collective]
  update_collectives: list[collectives.Collective]
  backends: list[backends.Choice]
  custom_calls: dict[str, int]


def dry_run(
  config: Config,
  say: Callable[[str], None] = lambda line: None,
  topology: gpus.Topology | None = None,
) -> DryRun:
  """Compiles the programs of a step for the config's mesh.

  Args:
    config: the run's config; the process needs as many devices as the mesh
      has, which may be virtual.
    say: called with messages on the progress.
    topology: GPUs to compile for instead, which needn't exist.

  Raises:
    ConfigError: the mesh has more devices than there are, or can't be used.
    InputError: JAX can't compile for these GPUs here.
  """
  if topology is None:
    return _on_mesh(config, mesh_of(config), say)
  mesh = mesh_of(config, gpus.devices(topology))
  with devices.compiling_for(gpus.target(topology)):
    return _on_mesh(config, mesh, say)


def _on_mesh(
  config: Config, mesh: jax.sharding.Mesh, say: Callable[[str], None]
) -> DryRun:
  sizes = dict(mesh.shape)
  started = time.monotonic()
  # Before the mesh is set, because described GPUs can't compute anything.
  shardings = placement.state_shardings(config, mesh)
  state = _placed(abstract_state(config), shardings)
  counted = sharding.state_bytes(config, mesh.size)
  rates = _abstract_rates(config, mesh)
  batch = _abstract_batch(config, mesh)
  parts = config.train.micro_batches
  with jax.set_mesh(mesh), jax.default_matmul_precision('highest'):
    if sizes['pipeline'] > 1:
      say(f'compiling a step in a pipeline for {mesh.size} devices')
      # Every conditional is for a tick in which a stage may have nothing to do.
      step, found = _compiled(
        pipelined_step.lower(config, state, [batch] * parts, rates),
        sizes,
        share_taken=parts / pipeline.num_ticks(parts, sizes['pipeline']),
      )
      counted += _local_bytes(([batch] * parts, rates))
      return _dry_run(started, config, step, step, counted, found, [])
    program, _ = _compiled(nothing.lower(config), sizes)
    so_far = _placed(program.out_info, program.output_shardings)
    weights, of_gather = None, []
    if ranks.rank_axes():
      say('compiling the gather of weights')
      program, of_gather = _compiled(gather.lower(state.params, config), sizes)
      weights = _placed(program.out_info, program.output_shardings)
    say(f'compiling the passes of a micro-batch for {mesh.size} devices')
    passes, found = _compiled(
      accumulate.lower(config, state, batch, rates, so_far, weights), sizes
    )
    say('compiling the update')
    update, of_update = _compiled(
      apply.lower(config, state, so_far, rates), sizes
    )
  found = _added([(of_gather, 1), (found, parts), (of_update, 1)])
  # The update only reads these rates; a program drops unused arguments.
  read = [rates.learning_rate]
  if state.router_bias:
    read.append(rates.bias_update_rate)
  counted += sum(
    one.gradient_bytes for one in sharding.placements(config, mesh.size)
  )
  counted += _local_bytes((so_far.sums, read))
  return _dry_run(started, config, passes, update, counted, found, of_update)


def _dry_run(
  started, config, passes, update, counted, found, of_update
) -> DryRun:
  memory = update.memory_analysis()
  return DryRun(
    compile_seconds=time.monotonic() - started,
    host_peak_bytes=_host_peak_bytes(),
    arguments_bytes=memory.argument_size_in_bytes,
    outputs_bytes=memory.output_size_in_bytes,
    state_bytes=counted,
    temporaries_bytes=(
      passes.memory_analysis().temp_size_in_bytes
      if devices.present().platform != 'cpu' or jax.__version_info__ >= (0, 12)
      else None
    ),
    micro_batches=config.train.micro_batches,
    collectives=found,
    update_collectives=of_update,
    backends=backends.for_training(
      config.model,
      config.compute,
      config.train.compute_dtype,
      config.data.isolate_documents,
      fp8=config.fp8 if config.train.precision == 'fp8' else None,
    ),
    custom_calls=dict(Counter(_CUSTOM_CALL.findall(passes.as_text()))),
  )


def _local_bytes(arrays: PyTree) -> int:
  """Number of bytes of the parts on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(arrays)
  )


def _placed(shapes: PyTree, shardings: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )


def _abstract_batch(config: Config, mesh: jax.sharding.Mesh) -> Batch:
  rows = config.data.batch_size // config.train.micro_batches
  x = jax.ShapeDtypeStruct(
    (rows, config.data.sequence_length),
    jnp.int32,
    sharding=rules.sharding(mesh, ('batch', 'length')),
  )
  # pyrefly: ignore[bad-argument-type]: shapes stand for arrays.
  return Batch(*([x] * len(dataclasses.fields(Batch))))


def _abstract_rates(config: Config, mesh: jax.sharding.Mesh) -> Rates:
  rates = jax.tree.map(jnp.asarray, Schedule(config).rates(0))
  whole = NamedSharding(mesh, PartitionSpec())
  return _placed(rates, jax.tree.map(lambda _: whole, rates))


def _compiled(
  lowered: jax.stages.Lowered, sizes: dict[str, int], share_taken: float = 1.0
):
  """Returns (the compiled program, its collectives after partitioning)."""
  with tempfile.TemporaryDirectory(prefix='seekax-hlo-') as folder:
    compiled = lowered.compile(
      compiler_options={
        'xla_dump_to': folder,
        'xla_dump_hlo_pass_re': 'spmd-partitioning',
      }
    )
    (dumped,) = pathlib.Path(folder).glob('*after_spmd-partitioning*')
    return compiled, collectives.read(dumped.read_text(), sizes, share_taken)


def _added(parts) -> list[collectives.Collective]:
  """Sums up (collectives, how often they run) by kind and axis."""
  total: dict[tuple[str, str], list[float]] = {}
  for rows, times in parts:
    for row in rows:
      entry = total.setdefault((row.kind, row.axis), [0, 0.0])
      entry[0] += times * row.count
      entry[1] += times * row.bytes
  found = [
    collectives.Collective(kind, axis, int(count), sent)
    for (kind, axis), (count, sent) in total.items()
  ]
  return sorted(found, key=lambda row: -row.bytes)


def _host_peak_bytes() -> int:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024
