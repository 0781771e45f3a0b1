"""`seekax plan`: the cost of a model, before anything is rented."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import sys

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.cli import plan_flags, plan_text
from seekax.configuration.config import Config, from_config_dict
from seekax.configuration.errors import ConfigError, InputError
from seekax.configuration.mesh import ParallelConfig
from seekax.configuration.named import find_config, load_config
from seekax.dryrun import gpus
from seekax.files import JsonObject
from seekax.planning import hardware, layout_choice
from seekax.planning import plan as plan_lib
from seekax.planning import search as search_lib
from seekax.planning.layout import Layout
from seekax.planning.request import Request

# Number of layouts that --search shows, and of rows of --schedule.
_SHOWN = 8
_POINTS = 20


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  values = flags.FlagValues()
  named = flags_lib.config_name(argv)
  argv, has_config = flags_lib.define_config(values, argv)
  plan_flags.define(values)
  flags_lib.parse(
    values,
    argv,
    'plan',
    'Prices a run before it is rented: parameters, FLOP, memory, traffic, time '
    'per step, hours and dollars, and what serving takes.',
  )
  if not has_config:
    flags_lib.require(values, 'config')
  config, _ = flags_lib.config_of(values)
  plan_flags.refuse_what_is_ignored(values, config)
  if values.schedule:
    print(_schedule(config))
    return 0
  topology = _topology(values)
  tokens, tokens_from = plan_flags.tokens_of(values, config)
  layout, layout_flag = plan_flags.layout_of(values, config)
  request = Request(
    config=config,
    device=hardware.find_device(values.hardware),
    devices=values.devices,
    tokens=tokens,
    price=plan_flags.price_of(values, config),
    posttraining_hours=values.posttraining_hours,
    layout=layout,
    layout_flag=layout_flag,
    tokens_from=tokens_from,
  )
  if (values.sharding or values.compile) and 'whole_experts' in layout:
    raise InputError(
      f'--layout={layout}: this program does not spread whole experts over '
      'tensor ranks, the planner alone does; leave whole_experts out'
    )
  if values.sharding:
    print(_sharding(config, request))
    return 0
  found = layout_choice.search(request, _SHOWN) if values.search else []
  best = found[0].layout if found else None
  plans = {named: plan_lib.make(request, best)}
  for name, other in _others(values.compare, named, config).items():
    try:
      plans[name] = plan_lib.make(
        dataclasses.replace(request, config=other, layout='')
      )
    except InputError as error:
      raise InputError(f'--compare={name}: {error}') from error
  dry_run, figures = '', {}
  if values.compile:
    dry_run, figures = _compiled(
      config, plans[named].run.layout, values.devices, topology
    )
  _write(values, plans, figures, found)
  if found:
    print(plan_text.search_table(request, found), end='\n\n')
  if values.compare:
    print(plan_text.comparison(plans))
  else:
    print(plan_text.table(named, plans[named]))
  if dry_run:
    if plan_flags.has_mesh(config):
      print(
        '\nThe price is of the layout above, the dry run of '
        f'config.parallel.mesh={config.parallel.mesh}.'
      )
    print('\n' + dry_run)
  return 0


def _topology(values: flags.FlagValues) -> gpus.Topology | None:
  """Returns --topology, which sets --devices and --hardware.

  Raises:
    InputError: it can't be read or compiled for, or contradicts other flags.
  """
  if not values.topology:
    return None
  topology = gpus.parse(values.topology)
  if not values.compile:
    raise InputError('--topology= is what to compile for: give --compile too')
  follow = {'devices': topology.devices, 'hardware': topology.name}
  for flag, value in follow.items():
    if values[flag].present and values[flag].value != value:
      raise InputError(
        f'--{flag}={values[flag].value} is not --topology={topology}, which '
        f'is {value}; leave --{flag} out'
      )
    values[flag].value = value
  gpus.require_compiler()
  return topology


def _compiled(
  config: Config,
  layout: Layout,
  devices: int,
  topology: gpus.Topology | None,
) -> tuple[str, JsonObject]:
  """Returns the dry run's table and figures; prints its progress on stderr."""
  from seekax.cli import plan_mesh

  if topology is None:
    plan_mesh.use_virtual_devices(devices)
    config = plan_mesh.on_mesh(config, layout, devices)
  else:
    plan_mesh.use_virtual_devices(1)
    precision = config.train.precision
    config = plan_mesh.on_mesh(config, layout, devices, precision)

  def say(line: str) -> None:
    print(f'dry run: {line}', file=sys.stderr)

  return plan_mesh.compiled(config, devices, say, topology)


def _sharding(config: Config, request: Request) -> str:
  """The table of placements, on the config's mesh or the layout's."""
  from seekax.cli import plan_mesh

  if config.parallel.mesh == ParallelConfig.mesh and request.devices > 1:
    layout = plan_lib.make(request).run.layout
  else:
    layout = Layout()
  plan_mesh.use_virtual_devices(1)
  config = plan_mesh.on_mesh(config, layout, request.devices)
  return plan_mesh.sharding_table(config, request.devices)


def _others(names: str, named: str, config: Config) -> dict[str, Config]:
  """Returns the configs of --compare, and a dense one of equal activation.

  Raises:
    InputError: one doesn't exist, is given twice, or is --config itself.
  """
  others, seen = {}, {_identity(named): '--config'}
  for name in filter(None, names.split(',')):
    try:
      found = load_config(name)
    except ConfigError as error:
      raise InputError(
        str(error).replace('--config=', '--compare=', 1)
      ) from error
    if _identity(name) in seen:
      raise InputError(
        f'--compare={names}: {name} is {seen[_identity(name)]} already; name '
        'another one'
      )
    seen[_identity(name)] = 'compared'
    others[name] = from_config_dict(found)
  if others and config.model.uses_experts:
    dense = plan_lib.dense_of_equal_activation(config)
    others[f'{named}, dense'] = dense
  return others


def _identity(name: str) -> tuple[str, str]:
  """A key that is equal for different names of one config."""
  base, _, variant = name.partition(':')
  return str(find_config(base) or base), variant


def _write(
  values: flags.FlagValues,
  plans: dict[str, plan_lib.Plan],
  figures: JsonObject,
  searched: Sequence[search_lib.Found],
) -> None:
  """Writes --json, with the dry run's figures, and --report.

  Raises:
    InputError: a file can't be written.
  """
  from seekax.files import write_atomically

  named, *others = plans
  files = {}
  if values.json:
    found = plans[named].as_json() | figures
    if others:
      found['compare'] = {name: plans[name].as_json() for name in others}
    files['json'] = json.dumps(found, indent=2) + '\n'
  if values.report:
    from seekax.cli import plan_page
    from seekax.report.page import render

    files['report'] = render(plan_page.page(plans, searched))
  for flag, text in files.items():
    try:
      write_atomically(pathlib.Path(getattr(values, flag)), text)
    except OSError as error:
      raise InputError(
        f'--{flag}={values[flag].value}: {error.strerror}'
      ) from error


def _schedule(config: Config) -> str:
  """A table of rates, batch and weights over the tokens trained on."""
  from seekax.training.schedules import Schedule

  schedule, length = Schedule(config), config.data.sequence_length
  last = config.train.steps - 1
  rows = [('step', 'tokens', 'sequences', 'learning rate', 'lambda', 'gamma')]
  for step in sorted({round(last * i / _POINTS) for i in range(_POINTS + 1)}):
    rows.append(
      (
        f'{step:,}',
        plan_text.short(schedule.tokens_before(step)),
        f'{schedule.batch_tokens(step) // length:,}',
        f'{schedule.learning_rate(step):.3g}',
        f'{schedule.mtp_weight(step):g}',
        f'{schedule.bias_update_rate(step):g}',
      )
    )
  return plan_text.columns(rows)
