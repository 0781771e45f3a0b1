"""The group `parallel`: axes of the mesh of devices, and their sizes."""

import dataclasses
import math

from seekax.configuration.errors import ConfigError, did_you_mean
from seekax.configuration.fields import key, require

# From the slowest link to the fastest, as devices are numbered.
MESH_AXES = (
  'pipeline',
  'data',
  'fsdp',
  'expert_node',
  'expert',
  'context',
  'tensor',
)
# Those that split a batch: expert ranks are data ranks.
BATCH_AXES = ('data', 'fsdp', 'expert_node', 'expert')


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
  """How the computation is spread over devices."""

  mesh: str = key('data:1', "axes and sizes, e.g. 'data:2,expert:-1'")

  def __post_init__(self):
    parse_mesh(self.mesh)


def parse_mesh(description: str) -> dict[str, int]:
  """Reads 'data:4' into {'data': 4}; -1 is 'the rest of the devices'.

  Raises:
    ConfigError: an axis is unknown or given twice, a size is no number, or
      several are -1.
  """
  sizes = {}
  for part in description.split(','):
    axis, _, size = part.partition(':')
    if axis not in MESH_AXES:
      raise ConfigError(
        f'parallel.mesh={description!r}: unknown axis {axis!r}, known: '
        + ', '.join(MESH_AXES)
        + did_you_mean(axis, MESH_AXES)
      )
    require(
      axis not in sizes
      and (size == '-1' or (size.isdecimal() and int(size) > 0)),
      f'parallel.mesh={description!r}: write each axis once as name:size, '
      "e.g. 'data:4'",
    )
    sizes[axis] = int(size)
  require(
    list(sizes.values()).count(-1) <= 1,
    f'parallel.mesh={description!r}: only one axis can be -1, the rest of the '
    'devices',
  )
  return sizes


def mesh_sizes(
  description: str,
  num_devices: int,
  advice: str = 'or make others invisible (CUDA_VISIBLE_DEVICES)',
) -> dict[str, int]:
  """The size of every axis, 1 for those that aren't named.

  Args:
    description: as `parallel.mesh`.
    num_devices: number of devices that there are.
    advice: how to have another number of devices.

  Returns:
    {axis: size} in the order of MESH_AXES.

  Raises:
    ConfigError: it can't be read, or its devices are neither all that there are
      nor a single one.
  """
  sizes = parse_mesh(description)
  fixed = math.prod(size for size in sizes.values() if size > 0)
  for axis, size in sizes.items():
    if size == -1:
      require(
        num_devices % fixed == 0,
        f'parallel.mesh={description!r}: {num_devices} devices are not '
        f'divisible by {fixed}, the product of the other axes',
      )
      sizes[axis] = num_devices // fixed
  wanted = math.prod(sizes.values())
  require(
    wanted in (1, num_devices),
    f'parallel.mesh={description!r} has {wanted} devices, there are '
    f'{num_devices}; give one axis -1, the rest of them, {advice}',
  )
  return {axis: sizes.get(axis, 1) for axis in MESH_AXES}
