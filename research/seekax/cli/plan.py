"""`seekax plan`: what a model costs, before anything is rented."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import re
import sys
from typing import Any

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.cli import plan_text
from seekax.config import (
  Config,
  from_config_dict,
  InputError,
  ParallelConfig,
)
from seekax.dryrun import gpus
from seekax.planning import hardware
from seekax.planning import plan as plan_lib
from seekax.planning.layout import Layout

# Layouts that --search shows; rows of --schedule.
_SHOWN = 8
_POINTS = 20
_POWERS = {'': 1.0, 'K': 1e3, 'M': 1e6, 'B': 1e9, 'T': 1e12}


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  values = flags.FlagValues()
  named = flags_lib.config_name(argv)
  argv, has_config = flags_lib.define_config(values, argv)
  _define(values)
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
  if values.schedule:
    print(_schedule(config))
    return 0
  topology = _topology(values)
  request = plan_lib.Request(
    config=config,
    device=hardware.find_device(values.hardware),
    devices=values.devices,
    tokens=_tokens(values.tokens),
    price=values.price,
    posttraining_hours=values.posttraining_hours,
    layout=values.layout,
  )
  if values.sharding:
    print(_sharding(config, request))
    return 0
  found = plan_lib.search(request, _SHOWN) if values.search else []
  if found:
    best = found[0].layout.describe()
    request = dataclasses.replace(request, layout=best)
  plans = {named: plan_lib.make(request)}
  for name, other in _others(values.compare, named, config).items():
    plans[name] = plan_lib.make(
      dataclasses.replace(request, config=other, layout='')
    )
  dry_run, figures = '', {}
  if values.compile:
    dry_run, figures = _compiled(
      config, plans[named].run.layout, values.devices, topology
    )
  _write(values, plans, figures)
  if found:
    print(plan_text.search_table(request, found), end='\n\n')
  if values.compare:
    print(plan_text.comparison(plans))
  else:
    print(plan_text.table(named, plans[named]))
  if dry_run:
    print('\n' + dry_run)
  return 0


def _topology(values: flags.FlagValues) -> gpus.Topology | None:
  """--topology, from which --devices and --hardware follow.

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
) -> tuple[str, dict[str, Any]]:
  """The dry run's table and figures; what goes on is told on stderr."""
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


def _sharding(config: Config, request: plan_lib.Request) -> str:
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
  """The configs of --compare, and a dense one of equal activation."""
  others = {
    name: from_config_dict(flags_lib.load_config(name))
    for name in names.split(',')
    if name not in ('', named)
  }
  if others and config.model.uses_experts:
    dense = plan_lib.dense_of_equal_activation(config)
    others[f'{named}, dense'] = dense
  return others


def _write(
  values: flags.FlagValues,
  plans: dict[str, plan_lib.Plan],
  figures: dict[str, Any],
) -> None:
  """--json, with the dry run's figures, and --report.

  Raises:
    InputError: a file can't be written.
  """
  from seekax.storage.manifest import write_atomically

  named, *others = plans
  files = {}
  if values.json:
    found = plans[named].as_json() | figures
    if others:
      found['compare'] = {name: plans[name].as_json() for name in others}
    files['json'] = json.dumps(found, indent=2) + '\n'
  if values.report:
    from seekax.cli import plan_page
    from seekax.training.page import render

    files['report'] = render(plan_page.page(plans))
  for flag, text in files.items():
    try:
      write_atomically(pathlib.Path(values[flag].value), text)
    except OSError as error:
      raise InputError(
        f'--{flag}={values[flag].value}: {error.strerror}'
      ) from error


def _schedule(config: Config) -> str:
  """Rates, batch and weights over the tokens trained on."""
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


def _define(values: flags.FlagValues) -> None:
  define = {'flag_values': values}
  flags.DEFINE_string(
    'hardware',
    'h800',
    'of the devices: ' + ', '.join(hardware.planned()),
    **define,
  )
  flags.DEFINE_integer('devices', 2048, 'how many', **define)
  flags.DEFINE_string(
    'tokens', '14.8T', 'of pre-training, also as 500B or 14.8T', **define
  )
  flags.DEFINE_float('price', 2.0, 'dollars per device hour', **define)
  flags.DEFINE_float(
    'posttraining_hours',
    -1.0,
    "device hours, an input; -1: DeepSeek-V3's 5,000 in proportion to --tokens",
    **define,
  )
  flags.DEFINE_string(
    'layout',
    '',
    "'paper' (16-way pipeline, experts over 8 nodes of 8) or axes and settings "
    "as 'pipeline:8,tensor:2,expert_node:8,expert:8'; '': the paper's where it "
    'fits, else the cheapest',
    **define,
  )
  flags.DEFINE_bool(
    'search', False, 'try every layout, print and plan the cheapest', **define
  )
  flags.DEFINE_string(
    'compare',
    '',
    'other configs beside this one, each in its cheapest layout: a,b',
    **define,
  )
  flags.DEFINE_bool(
    'schedule', False, 'print rates and batch over the tokens', **define
  )
  flags.DEFINE_bool(
    'sharding',
    False,
    'print where every parameter lies on config.parallel.mesh, or on the '
    "layout's mesh, and its bytes per device",
    **define,
  )
  flags.DEFINE_bool(
    'compile',
    False,
    'a dry run: compile the real training step for as many virtual devices, '
    'and count its arguments and collectives',
    **define,
  )
  flags.DEFINE_string(
    'topology',
    '',
    'with --compile: compile for these GPUs instead, which need not be there, '
    'hosts x GPUs per host, as h100:256x8, and count temporaries too; takes '
    'the packages of jax[cuda13]; ' + ', '.join(gpus.GPUS),
    **define,
  )
  flags.DEFINE_string('report', '', 'write a page of HTML', **define)
  flags.DEFINE_string('json', '', 'write all figures, not rounded', **define)


def _tokens(text: str) -> float:
  """Reads '14.8T'.

  Raises:
    InputError: it is no number.
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
