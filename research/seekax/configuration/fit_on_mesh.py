"""Whether a model and its batch can be divided over a mesh."""

import math

from seekax.configuration.config import Config
from seekax.configuration.fields import require
from seekax.configuration.fp8 import FP8_TILE
from seekax.configuration.mesh import BATCH_AXES, MESH_AXES, parse_mesh


def check_mesh(config: Config, sizes: dict[str, int] | None = None) -> None:
  """Refuses a mesh that this model or batch can't be spread over, in words.

  Args:
    config: the run.
    sizes: size of every axis of MESH_AXES. None takes those that parallel.mesh
      names, and 1 for -1, since the number of devices isn't known.

  Raises:
    ConfigError: something isn't divisible by the axes that split it.
  """
  if sizes is None:
    named = parse_mesh(config.parallel.mesh)
    sizes = {axis: max(named.get(axis, 1), 1) for axis in MESH_AXES}
  model, data = config.model, config.data
  parts = config.train.micro_batches

  def divides(value: int, name: str, axes: tuple[str, ...], why: str):
    size = math.prod(sizes[axis] for axis in axes)
    split = ' times '.join(f'{axis}:{sizes[axis]}' for axis in axes)
    require(
      value % size == 0,
      f'{name}={value} is not divisible by {split} of parallel.mesh, which '
      + why,
    )

  rows = data.batch_size // parts
  name = 'data.batch_size'
  if parts > 1:
    name += ' / train.micro_batches'
  divides(rows, name, BATCH_AXES, 'split the batch')
  divides(
    data.sequence_length, 'data.sequence_length', ('context',), 'splits it'
  )
  divides(model.num_heads, 'model.num_heads', ('tensor',), 'splits heads')
  divides(
    model.kv_heads, 'the number of key/value heads', ('tensor',), 'splits heads'
  )
  hidden = {}
  if model.num_plain_layers:
    hidden['model.mlp_dim'] = model.mlp_dim
  if model.uses_experts:
    hidden['model.expert_dim'] = model.expert_dim
    divides(
      model.num_experts,
      'model.num_experts',
      ('expert_node', 'expert'),
      'split the experts',
    )
    divides(
      model.num_expert_groups,
      'model.num_expert_groups',
      ('expert_node',),
      'may not split a routing group',
    )
  else:
    for axis in ('expert_node', 'expert'):
      require(
        sizes[axis] == 1,
        f'parallel.mesh has {axis}:{sizes[axis]}, but model.ffn='
        f'{model.ffn!r} has no experts',
      )
  for name, width in hidden.items():
    divides(width, name, ('tensor',), 'splits it')
  divides(
    model.vocab_size,
    'model.vocab_size',
    ('pipeline',),
    'splits embedding and head',
  )
  layers = model.num_layers + model.mtp_depth
  require(
    layers >= sizes['pipeline'],
    f'parallel.mesh has pipeline:{sizes["pipeline"]}, but the model has only '
    f'{layers} layers and MTP modules to make stages of',
  )
  if config.train.precision == 'fp8':
    _check_fp8_tiles(config, sizes, rows, hidden)


def _check_fp8_tiles(config, sizes, rows, hidden) -> None:
  """Refuses tiles of FP8 that would lie on two devices."""
  split = math.prod(sizes[axis] for axis in (*BATCH_AXES, 'context'))
  tokens = rows * config.data.sequence_length
  require(
    split == 1 or tokens // split % FP8_TILE == 0,
    f'parallel.mesh={config.parallel.mesh!r} leaves {tokens / split:g} tokens '
    f'to a device, no multiple of {FP8_TILE}: tiles of FP8 would straddle '
    'devices; use fewer of them or more tokens',
  )
  for name, width in hidden.items():
    require(
      sizes['tensor'] == 1 or width // sizes['tensor'] % FP8_TILE == 0,
      f'{name}={width} over tensor:{sizes["tensor"]} of parallel.mesh is no '
      f'multiple of {FP8_TILE}: tiles of FP8 would straddle devices',
    )
