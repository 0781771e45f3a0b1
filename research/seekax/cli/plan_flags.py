"""The flags of `seekax plan`, and which of them go together."""

import re
from typing import Any

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.configuration.config import Config
from seekax.configuration.errors import InputError
from seekax.configuration.fit_on_mesh import check_mesh
from seekax.configuration.mesh import BATCH_AXES, mesh_sizes, ParallelConfig
from seekax.dryrun import gpus
from seekax.planning import hardware
from seekax.planning.batch_ramp import BatchRamp

# Rent of an H800 in DeepSeek-V3's table 1, in dollars per hour.
_PRICE = 2.0
_POWERS = {'': 1.0, 'K': 1e3, 'M': 1e6, 'B': 1e9, 'T': 1e12}
# Modes that print no price, and the flags that each reads.
_NO_PRICE = {'schedule': (), 'sharding': ('devices', 'hardware', 'layout')}


class _Told(flags.ArgumentParser):
  """A parser whose errors say what to write."""

  def __init__(self, parser: flags.ArgumentParser, advice: str):
    self._parser, self._advice = parser, advice
    self.syntactic_help = parser.syntactic_help

  def parse(self, argument: Any) -> Any:
    try:
      return self._parser.parse(argument)
    except (TypeError, ValueError):
      raise ValueError(self._advice) from None

  def flag_type(self) -> str:
    return self._parser.flag_type()


_STRINGS = {
  'hardware': ('h800', 'kind of device: ' + ', '.join(hardware.planned())),
  'tokens': (
    '',
    "pre-training tokens, as 500B or 14.8T; '': those of the config's steps",
  ),
  'layout': (
    '',
    "'paper' (16-way pipeline, experts over 8 nodes of 8) or axes and settings "
    "as 'pipeline:8,tensor:2,expert_node:8,expert:4'; '': that of "
    "config.parallel.mesh, else the paper's where it fits on nodes of 8, else "
    'the cheapest that --search finds',
  ),
  'compare': (
    '',
    "other configs beside this one: a,b; each in the paper's layout where that "
    'fits on nodes of 8, else in the cheapest found',
  ),
  'topology': (
    '',
    'with --compile: compile for these GPUs instead, which need not be there, '
    'hosts x GPUs per host, as h100:256x8, and count temporaries too; takes '
    'the packages of jax[cuda13]; ' + ', '.join(gpus.GPUS),
  ),
  'report': ('', 'path of an HTML page to write'),
  'json': ('', 'path of a JSON file for all figures, not rounded'),
}
_BOOLEANS = {
  'search': (
    'try meshes of all divisors, schedules, micro-batches of 1, 2 and 4 and '
    'every remat (planning/search.py says which), print the cheapest that fit '
    'and plan the first'
  ),
  'schedule': 'print rates and batch over the tokens',
  'sharding': (
    'print where every parameter lies on config.parallel.mesh, or on the '
    "layout's mesh, and its bytes per device"
  ),
  'compile': (
    'a dry run: compile the real training step for as many virtual devices, '
    'and count its arguments and collectives'
  ),
}
_DEFINED = ('devices', 'price', 'posttraining_hours', *_STRINGS, *_BOOLEANS)


def define(values: flags.FlagValues) -> None:
  define = {'flag_values': values}
  advice = {
    'devices': 'write a whole number, as 2048',
    'price': 'write dollars as a number, as 2 or 2.5',
    'posttraining_hours': 'write hours as a number, as 5000',
  }
  flags.DEFINE_integer('devices', 2048, 'how many', **define)
  flags.DEFINE_float(
    'price',
    -1.0,
    "dollars per device hour; -1: the config's train.price_per_device_hour, or "
    f'{_PRICE:g} where it has none',
    **define,
  )
  flags.DEFINE_float(
    'posttraining_hours',
    -1.0,
    "device hours, an input; -1: DeepSeek-V3's 5,000 in proportion to the FLOP "
    'of pre-training',
    **define,
  )
  for name, (default, text) in _STRINGS.items():
    if name in ('report', 'json'):
      flags_lib.define_path(values, name, text)
    else:
      flags.DEFINE_string(name, default, text, **define)
  for name, text in _BOOLEANS.items():
    flags.DEFINE_bool(name, False, text, **define)
    advice[name] = f'write --{name}, or leave it out'
  for name, words in advice.items():
    values[name].parser = _Told(values[name].parser, words)


def refuse_what_is_ignored(values: flags.FlagValues, config: Config) -> None:
  """Raises InputError for flags that another flag makes useless."""
  given = {flag for flag in _DEFINED if values[flag].present}
  for mode, used in _NO_PRICE.items():
    unused = given.difference((mode, *used))
    if values[mode].value and unused:
      raise InputError(
        f'--{mode} prints no price and looks at '
        + (' and '.join(f'--{flag}' for flag in ('config', *used)))
        + f' alone; leave --{min(unused)} out'
      )
  if values.search and values.layout:
    raise InputError(
      f'--search looks for a layout, --layout={values.layout} is one; leave '
      'one of them out'
    )
  if has_mesh(config) and not values.compile:
    for flag in ('layout', 'search'):
      if values[flag].value:
        raise InputError(
          f'--{flag} and --config.parallel.mesh={config.parallel.mesh} both '
          'say how the run lies on its devices; leave one of them out'
        )


def has_mesh(config: Config) -> bool:
  """Whether the config names a mesh of its own."""
  return config.parallel.mesh != ParallelConfig.mesh


def layout_of(values: flags.FlagValues, config: Config) -> tuple[str, str]:
  """Returns the layout to plan, and the flag that names it.

  A mesh in the config is planned as the program runs it: with its
  micro-batches, 1F1B, and in a pipeline full recomputation of a stage. With
  --compile and --sharding the mesh is used as it is; the price is of --layout.

  Raises:
    ConfigError: the mesh can't be used for this run.
  """
  if not has_mesh(config) or values.compile or values.sharding:
    return values.layout, ''
  mesh = config.parallel.mesh
  sizes = mesh_sizes(mesh, values.devices)
  check_mesh(config, sizes)
  parts = config.train.micro_batches
  for axis in BATCH_AXES:
    parts *= sizes[axis]
  fields: dict[str, int | str] = {
    axis: size for axis, size in sizes.items() if size > 1
  }
  fields['data'] = sizes['data']
  fields['micro_batch'] = config.data.batch_size // parts
  fields['remat'] = 'full' if sizes['pipeline'] > 1 else config.compute.remat
  text = ','.join(f'{name}:{value}' for name, value in fields.items())
  return text, f'--config.parallel.mesh={mesh}'


def price_of(values: flags.FlagValues, config: Config) -> float:
  """Dollars per device hour."""
  if values['price'].present and values.price != -1:
    return values.price
  return config.train.price_per_device_hour or _PRICE


def tokens_of(values: flags.FlagValues, config: Config) -> tuple[float, str]:
  """The number of tokens of a plan, and its origin if it wasn't given."""
  if values.tokens:
    return _tokens(values.tokens), ''
  steps = config.train.steps
  return (
    float(BatchRamp(config).total_tokens),
    f'the {steps:,} steps of this config',
  )


def _tokens(text: str) -> float:
  """Reads '14.8T'.

  Raises:
    InputError: it isn't a number.
  """
  match = re.fullmatch(r'([0-9.]+(?:e[+-]?[0-9]+)?)([KMBT]?)', text, re.I)
  try:
    if not match:
      raise ValueError
    return float(match.group(1)) * _POWERS[match.group(2).upper()]
  except ValueError as error:
    raise InputError(
      f'--tokens={text} is no number of tokens; write 500B or 14.8T'
    ) from error
