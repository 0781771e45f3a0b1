"""Finds seekax's own configs by name, and config files by their path.

A config file is Python code and is run.
"""

import os
import pathlib
import runpy

from ml_collections import ConfigDict

from seekax.configuration.errors import ConfigError, did_you_mean

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# The configs are a part of seekax: an installation has them in the package, a
# checkout in its top folder.
_CONFIGS = next(
  folder
  for folder in (_PACKAGE / 'configs', _PACKAGE.parents[1] / 'configs')
  if folder.is_dir()
)


def find_config(name: str) -> pathlib.Path:
  """Returns the file of a config; `name` has no variant.

  A bare name always means one of seekax's own configs, even if the current
  folder has a file of that name: a config file is code, so a user's file has to
  be asked for by its path.

  Args:
    name: a name such as `demo`, or the path of a .py file.

  Raises:
    ConfigError: there is none; the error names the nearest.
  """
  path = pathlib.Path(name).expanduser()
  if _is_path(name):
    if path.is_file():
      return path.resolve()
    own = _CONFIGS / path.name
    raise ConfigError(
      f'--config={name}: there is no such file'
      + (f'; seekax has a config of its own, --config={path.stem}')
      * own.is_file()
    )
  own = _CONFIGS / f'{name}.py'
  if own.is_file():
    return own
  known = config_names()
  here = [pathlib.Path(f'{name}.py'), pathlib.Path('configs', f'{name}.py')]
  found = next((file for file in here if file.is_file()), None)
  raise ConfigError(
    f'--config={name}: seekax has no such config'
    + (
      f'; to use the file in this folder, write --config=./{found}'
      if found
      else did_you_mean(name, known) or f'; known: {", ".join(known)}'
    )
  )


def config_names() -> list[str]:
  """Names of seekax's own configs, sorted."""
  return sorted(
    path.stem for path in _CONFIGS.glob('*.py') if path.stem != '__init__'
  )


def describe_config(value: str) -> str:
  """Says in words which file --config names."""
  name, _, arg = value.partition(':')
  what = find_config(name) if _is_path(name) else f"seekax's own {name}"
  return f'{what}{f", variant {arg}" if arg else ""}'


def _is_path(name: str) -> bool:
  return name.endswith('.py') or os.sep in name


def load_config(value: str) -> ConfigDict:
  """Runs the get_config of a config file.

  Args:
    value: a name or a file, with or without `:variant`.

  Raises:
    ConfigError: the config doesn't exist, or it fails.
  """
  name, _, arg = value.partition(':')
  path = find_config(name)
  try:
    config = runpy.run_path(str(path))['get_config'](arg)
  except ConfigError as error:
    raise ConfigError(f'--config={value}: {error}') from error
  # A config file is the user's code; it may even end the process.
  except (Exception, SystemExit) as error:
    raise ConfigError(
      f'--config={value}: {path} failed with {type(error).__name__}: {error}'
    ) from error
  if not isinstance(config, ConfigDict):
    raise ConfigError(
      f'--config={value}: get_config of {path} returned a '
      f'{type(config).__name__}, not a ConfigDict'
    )
  return config
