"""The parts of `seekax plan` that need JAX: the sharding and the dry run."""

from collections.abc import Callable
import dataclasses
import math
import os
from typing import Any

from seekax.cli import plan_text
from seekax.configuration.config import Config
from seekax.configuration.fit_on_mesh import check_mesh
from seekax.configuration.mesh import BATCH_AXES, mesh_sizes, ParallelConfig
from seekax.dryrun.gpus import Topology
from seekax.files import JsonObject
from seekax.planning import memory
from seekax.planning.layout import Layout

# Axes of a layout that a program's mesh also has.
_AXES = ('pipeline', *BATCH_AXES, 'context', 'tensor')
_FLAG = '--xla_force_host_platform_device_count'


def use_virtual_devices(count: int) -> None:
  """Makes JAX see this many CPU devices; call it before JAX is imported."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  given = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{given} {_FLAG}={count}'.strip()


def on_mesh(
  config: Config, layout: Layout, devices: int, precision: str = 'bfloat16'
) -> Config:
  """Returns the run on its own mesh, or on the layout's if it names none.

  A micro-batch is one sequence per rank of the batch, and the batch is rounded
  up to a multiple of that.

  Args:
    config: the run's config.
    layout: the planner's layout.
    devices: number of devices.
    precision: precision of training; a CPU only emulates FP8.

  Raises:
    ConfigError: the mesh can't be used for this run.
  """
  mesh = config.parallel.mesh
  if mesh == ParallelConfig.mesh and devices > 1:
    sizes = {axis: getattr(layout, axis) for axis in _AXES}
    sizes['data'] = devices // math.prod(
      size for axis, size in sizes.items() if axis != 'data'
    )
    mesh = ','.join(
      f'{axis}:{size}' for axis, size in sizes.items() if size > 1
    )
  sizes = mesh_sizes(mesh, devices)
  ranks = math.prod(sizes[axis] for axis in BATCH_AXES)
  parts = -(-config.data.batch_size // ranks)
  train = dataclasses.replace(
    config.train,
    precision=precision,
    micro_batches=parts,
    ramp_tokens=0,
    ramp_micro_batches=1,
  )
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data, batch_size=parts * ranks, num_shards=1
    ),
    train=train,
    parallel=dataclasses.replace(config.parallel, mesh=mesh),
  )
  check_mesh(config, sizes)
  return config


def sharding_table(config: Config, devices: int) -> str:
  """A table of every parameter: shape, axes, the mesh axes on them, bytes."""
  from seekax.dryrun import sharding

  rows = [
    ('parameter', 'shape', 'axes', 'weight over', 'MB', 'master over', 'MB')
  ]
  total = [0, 0]
  for one in sharding.placements(config, devices):
    rows.append(
      (
        one.name,
        'x'.join(map(str, one.shape)),
        ' '.join(name or '-' for name in one.axes),
        ' '.join(axis or '-' for axis in one.weight),
        plan_text.few(one.weight_bytes / 1e6),
        ' '.join(axis or '-' for axis in one.master),
        plan_text.few(one.master_bytes / 1e6),
      )
    )
    total[0] += one.weight_bytes
    total[1] += one.master_bytes
  weights, masters = (plan_text.few(size / 1e6) for size in total)
  rows.append(('total', '', '', '', weights, '', masters))
  return '\n'.join(
    [
      f'Mesh {config.parallel.mesh}; per device, weights in '
      f'{config.train.compute_dtype} as they are used, float32 masters',
      plan_text.columns(rows),
    ]
  )


def compiled(
  config: Config,
  devices: int,
  say: Callable[[str], None],
  topology: Topology | None = None,
) -> tuple[str, JsonObject]:
  """Returns the dry run as a table, and its figures for JSON.

  Args:
    config: the run's config, on its mesh.
    devices: number of devices.
    say: called with messages on the progress.
    topology: GPUs to compile for; None: virtual devices of the CPU.
  """
  from seekax.dryrun import compile as compile_lib

  found = compile_lib.dry_run(config, say, topology)
  planned = _planned_temporaries(config, devices)
  figures: JsonObject = dataclasses.asdict(found)
  figures['mesh'] = config.parallel.mesh
  figures['topology'] = str(topology or '')
  figures['planned_temporaries_bytes'] = planned
  gigabytes = [
    ('arguments of the update', found.arguments_bytes),
    ('  by plan --sharding', found.state_bytes),
    ('outputs of the update', found.outputs_bytes),
    ('temporaries of the passes', found.temporaries_bytes),
    ('  by the planner', planned),
    ("this process's peak", found.host_peak_bytes),
  ]
  rows = [('per device', 'GB')]
  rows += [
    (name, 'not told' if size is None else plan_text.few(size / 1e9))
    for name, size in gigabytes
  ]
  moved = [('collective', 'over', 'per step', 'GB sent')]
  moved += [
    (row.kind, row.axis, f'{row.count:,}', plan_text.few(row.bytes / 1e9))
    for row in found.collectives
  ]
  chosen = [f'{c.subject}: {c.name} ({c.reason})' for c in found.backends]
  if topology and found.custom_calls:
    calls = [f'{name} {n:,}' for name, n in found.custom_calls.items()]
    chosen.append(f'custom calls of the passes: {", ".join(calls)}')
  return (
    '\n'.join(
      [
        f'Dry run on mesh {config.parallel.mesh}: '
        f'{config.data.batch_size:,} sequences in {found.micro_batches} '
        f'micro-batches, {_compiled_for(config, topology)}; compiled in '
        f'{found.compile_seconds:.1f} s',
        *chosen,
        '',
        plan_text.columns(rows),
        '',
        plan_text.columns(moved),
      ]
    ),
    figures,
  )


def _compiled_for(config: Config, topology: Topology | None) -> str:
  if topology is None:
    return f'{config.train.precision} (FP8 is only emulated on a CPU)'
  return f'{config.train.precision}, for {topology} ({topology.gpu.kind})'


def _planned_temporaries(config: Config, devices: int) -> float:
  """The planner's estimate of a program's temporaries, in bytes per device.

  They are activations, a layer's gradients, and cast weights if no separate
  program gathers them; where a step is one program, also all gradients.
  """
  sizes = mesh_sizes(config.parallel.mesh, devices)
  axes: dict[str, Any] = {axis: sizes[axis] for axis in _AXES}
  layout = Layout(
    **axes,
    remat=config.compute.remat,
    exchange_slack=config.compute.exchange_slack,
  )
  planned = memory.training_memory(
    config.model,
    layout,
    config.data.batch_size,
    config.data.sequence_length,
    config.train.precision,
    config.optim.moment_dtype,
  )
  found = planned.activations + planned.temporaries
  if layout.pipeline > 1:
    return found + planned.parameters + planned.gradients
  # For ranks that work alone, another program gathers the weights before.
  apart = layout.data_ranks > layout.fsdp
  return found + (0 if apart else planned.parameters)
