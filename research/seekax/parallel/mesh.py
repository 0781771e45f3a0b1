"""Device meshes, from their description in the config."""

import math

import jax
from jax.sharding import AxisType, Mesh
import numpy as np

from seekax.config import ConfigError, did_you_mean

AXES = ('data',)


def parse_mesh(description: str) -> dict[str, int]:
  """Reads 'data:4' into {'data': 4}.

  Raises:
    ConfigError: an axis is unknown or given twice, or a size is no number.
  """
  sizes = {}
  for part in description.split(','):
    axis, _, size = part.partition(':')
    if axis not in AXES:
      raise ConfigError(
        f'parallel.mesh={description!r}: unknown axis {axis!r}, known: '
        + ', '.join(AXES)
        + did_you_mean(axis, AXES)
      )
    if axis in sizes or not size.isdigit() or int(size) < 1:
      raise ConfigError(
        f'parallel.mesh={description!r}: write each axis once as name:size, '
        "e.g. 'data:4'"
      )
    sizes[axis] = int(size)
  return sizes


def make_mesh(description: str) -> Mesh:
  """Builds the mesh over the first devices.

  The axis types are Auto: the compiler chooses what isn't constrained.

  Raises:
    ConfigError: the description can't be read or wants too many devices.
  """
  sizes = parse_mesh(description)
  wanted = math.prod(sizes.values())
  devices = jax.devices()
  if wanted > len(devices):
    raise ConfigError(
      f'parallel.mesh={description!r} wants {wanted} devices, this machine '
      f'has {len(devices)}'
    )
  grid = np.asarray(devices[:wanted]).reshape(tuple(sizes.values()))
  return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
