"""Builds device meshes from their description in the config."""

from collections.abc import Generator, Sequence
import contextlib
import contextvars
import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh
import numpy as np

from seekax.configuration.config import Config
from seekax.configuration.errors import ConfigError
from seekax.configuration.fit_on_mesh import check_mesh
from seekax.configuration.mesh import mesh_sizes, parse_mesh

# Mesh axes of the `ranks.apart` that is being traced.
APART: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar(
  'apart', default=frozenset()
)


def make_mesh(
  description: str, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Builds the mesh over all devices, or over the first one.

  It has every axis; those that aren't named have size 1. Devices are numbered
  along the last axes first, so that `tensor` and `expert` stay within a node.
  The axis types are Auto: the compiler chooses what isn't constrained.

  Args:
    description: `parallel.mesh`.
    devices: all devices; JAX's if None.

  Raises:
    ConfigError: the description can't be read or needs other devices.
  """
  devices = jax.devices() if devices is None else devices
  advice = {}
  if devices[0].platform == 'cpu':
    wanted = math.prod(size for size in parse_mesh(description).values())
    advice['advice'] = (
      'or let a CPU be several devices (XLA_FLAGS='
      f'--xla_force_host_platform_device_count={max(wanted, 1)})'
    )
  sizes = mesh_sizes(description, len(devices), **advice)
  wanted = math.prod(sizes.values())
  grid = np.asarray(devices[:wanted]).reshape(tuple(sizes.values()))
  return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def mesh_of(
  config: Config, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Builds the mesh of a run.

  Args:
    config: the run's config.
    devices: all devices; JAX's if None.

  Raises:
    ConfigError: the mesh needs other devices than there are, or can't be used
      for this run.
  """
  mesh = make_mesh(config.parallel.mesh, devices)
  if mesh.size == 1 and jax.process_count() > 1:
    raise ConfigError(
      f'parallel.mesh={config.parallel.mesh!r} is one device of one process, '
      f'there are {jax.process_count()} processes; data:-1 takes all their '
      'devices'
    )
  check_mesh(config, dict(mesh.shape))
  platform = mesh.devices.flat[0].platform
  if config.compute.exchange == 'ragged' and platform != 'gpu':
    raise ConfigError(
      f'compute.exchange=ragged: XLA has no ragged all-to-all for {platform} '
      'devices; take all_to_all'
    )
  return mesh


def current_sizes() -> dict[str, int]:
  """Sizes of the current mesh's axes above 1; {} without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return {}
  return {axis: size for axis, size in mesh.shape.items() if size > 1}


def shared_sizes() -> dict[str, int]:
  """The sizes of axes that split arrays here: not those of ranks apart."""
  apart = APART.get()
  return {a: size for a, size in current_sizes().items() if a not in apart}


def stages_differ() -> bool:
  """Whether ranks of different pipeline stages may run different code.

  They may if they meet only in collectives among the ranks of one stage. Where
  the compiler splits arrays over two axes, it also permutes parts between their
  ranks, and a permutation needs all devices of the mesh: on a CPU the devices
  that take part in it would wait forever.
  """
  sizes = current_sizes()
  return sum(axis in sizes for axis in ('fsdp', 'context', 'tensor')) <= 1


@contextlib.contextmanager
def none() -> Generator[None]:
  """Traces its body as for one device, whatever mesh is set.

  A layer that is traced within ranks that work apart has only their part of its
  experts.
  """
  token = APART.set(frozenset())
  try:
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
      yield
  finally:
    APART.reset(token)


def describe(mesh: Mesh) -> str:
  """The mesh's axes above size 1, in the notation of `parallel.mesh`."""
  sizes = [f'{name}:{size}' for name, size in mesh.shape.items() if size > 1]
  return ','.join(sizes) or 'data:1'
