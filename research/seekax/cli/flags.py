"""A command's flags: absl flags, presets, config files, helpful errors."""

from collections.abc import Sequence
import dataclasses
import os
import re
import sys

from absl import flags
from ml_collections import config_flags

from seekax.configuration.config import (
  Config,
  from_config_dict,
  GROUPS,
  to_config_dict,
)
from seekax.configuration.errors import ConfigError, did_you_mean, InputError
from seekax.configuration.named import config_names, load_config
from seekax.files import JsonObject

# Exit code of a run that a value which isn't finite stopped.
NOT_FINITE = 3


def parse(
  values: flags.FlagValues, argv: Sequence[str], name: str, text: str
) -> None:
  """Parses a command's flags, or prints its help and exits with 0.

  Args:
    values: the command's own flags.
    argv: the arguments after the command's name.
    name: name of the command.
    text: first paragraph of the help.

  Raises:
    InputError: a flag is unknown or has a bad value, or a word isn't a flag.
  """
  if any(word in ('--help', '-h', '-help', '--helpfull') for word in argv):
    print(_help(values, name, text))
    sys.exit(0)
  try:
    rest = values([f'seekax {name}', *argv])[1:]
  except flags.UnrecognizedFlagError as error:
    near = did_you_mean(error.flagname, list(values))
    raise InputError(
      f'unknown flag --{error.flagname}' + (near or f'; see {name} --help')
    ) from error
  except flags.Error as error:
    raise InputError(str(error)) from error
  if rest:
    raise InputError(
      f'{rest[0]!r} is no flag; flags start with --, see seekax {name} --help'
    )


def require(values: flags.FlagValues, *names: str) -> None:
  """Raises InputError for the first of these flags that is missing."""
  for name in names:
    if not values[name].value:
      raise InputError(f'--{name}= is missing: {values[name].help}')


def define_compilation_cache(values: flags.FlagValues) -> None:
  """Defines the flag for the folder of compiled programs."""
  define_path(
    values,
    'compilation_cache',
    "folder of compiled programs, so that the next call starts sooner; 'auto': "
    "seekax/xla in $XDG_CACHE_HOME or ~/.cache; '': none",
    'auto',
  )


def say(line: str) -> None:
  """Prints a line for people on stderr; programs read stdout."""
  print(line, file=sys.stderr, flush=True)


class _PathParser(flags.ArgumentParser):
  """Parses a path; expands ~, because shells don't do so after `=`."""

  def parse(self, argument: str) -> str:
    return os.path.expanduser(argument)


def define_path(
  values: flags.FlagValues, name: str, text: str, default: str = ''
) -> None:
  """Defines a flag that is the path of a file or folder."""
  flags.DEFINE(_PathParser(), name, default, text, flag_values=values)


def define_config(
  values: flags.FlagValues,
  argv: Sequence[str],
  default: Config | None = None,
) -> tuple[list[str], bool]:
  """Defines --config and its overrides; checks them before absl reads them.

  Args:
    values: the command's own flags.
    argv: the arguments after the command's name.
    default: the config if --config is left out; None for none.

  Returns:
    (argv without --config itself, whether there is a config).

  Raises:
    ConfigError: the config or a key doesn't exist; the error names the nearest.
  """
  argv = _joined(argv)
  named = [word for word in argv if re.match(r'--?config=', word)]
  argv = [word for word in argv if word not in named]
  has_config = bool(named) or default is not None
  _check_keys(argv, has_config)
  text = 'a name below, or the path of a config file: ./mine.py[:variant]'
  if named:
    config = load_config(named[-1].partition('=')[2])
  elif default is not None:
    config = to_config_dict(default)
  else:
    flags.DEFINE_string('config', '', text, flag_values=values)
    return argv, False
  config_flags.DEFINE_config_dict(
    'config', config, text, flag_values=values, sys_argv=['seekax', *argv]
  )
  return argv, True


def config_name(argv: Sequence[str]) -> str:
  """Returns the value of --config; '' if it isn't given."""
  named = [w for w in _joined(argv) if re.match(r'--?config=', w)]
  return named[-1].partition('=')[2] if named else ''


def config_of(values: flags.FlagValues) -> tuple[Config, JsonObject]:
  """The validated config and the overrides given on the command line."""
  overrides = config_flags.get_override_values(values['config'])
  return from_config_dict(values.config), dict(overrides)


def _joined(argv: Sequence[str]) -> list[str]:
  """Rewrites `--config x` and `--config.a.b x` with an equals sign."""
  joined, words = [], iter(argv)
  for word in words:
    if re.fullmatch(r'--?config(\.[\w.]+)?', word):
      word = f'{word}={next(words, "")}'
    joined.append(word)
  return joined


def _check_keys(argv: Sequence[str], given: bool) -> None:
  keys = {
    f'{group}.{field.name}'
    for group, kind in GROUPS.items()
    for field in dataclasses.fields(kind)
  }
  for word in argv:
    match = re.match(r'--?(?:no)?config\.([^=]*)', word)
    if not match:
      continue
    key = match.group(1)
    if key not in keys:
      raise ConfigError(f'unknown config key {key}' + _nearest_key(key, keys))
    if not given:
      raise ConfigError(f'--config.{key} overrides nothing: give --config= too')


def _nearest_key(key: str, keys: set[str]) -> str:
  """Suggests the nearest key; one of the same name in another group first."""
  last = key.rpartition('.')[2]
  elsewhere = [known for known in keys if known.rpartition('.')[2] == last]
  return did_you_mean(key, elsewhere or keys) or '; see seekax train --help'


def _help(values: flags.FlagValues, name: str, text: str) -> str:
  lines = [text, '', f'Usage: seekax {name} [flags]', '', 'Flags:']
  for flag_name in sorted(values):
    flag = values[flag_name]
    default = '' if flag.default in (None, '') else f' (default {flag.default})'
    lines.append(f'  --{flag_name}=  {flag.help}{default}')
  if 'config' in values:
    lines += ['', *_config_help()]
  return '\n'.join(lines)


def _config_help() -> list[str]:
  lines = ['Configs (each also as <name>:tiny, at laptop size):']
  lines.append(f'  {", ".join(config_names())}')
  lines += ['', 'Config keys, overridden by --config.<group>.<key>=<value>']
  lines.append('(defaults: the released 671B model and its pre-training):')
  for group, kind in GROUPS.items():
    for field in dataclasses.fields(kind):
      lines.append(
        f'  {group}.{field.name}  {field.metadata["help"]} '
        f'(default {field.default!r})'
      )
  return lines
