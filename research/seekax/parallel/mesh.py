"""Device meshes, from their description in the config."""

import math

import jax
from jax.sharding import AxisType, Mesh
import numpy as np

from seekax.config import ConfigError, parse_mesh


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
