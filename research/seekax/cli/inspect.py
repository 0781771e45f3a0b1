"""`seekax inspect`: look at a run: parameters, checkpoints, checksums, hash."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.config import InputError
from seekax.planning.parameters import count_parameters
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import write_atomically


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  argv = _with_named_path(argv)
  values = flags.FlagValues()
  define = {'flag_values': values}
  flags.DEFINE_string(
    'workdir', '', 'folder of the run, also without --workdir=', **define
  )
  flags.DEFINE_bool('verify', False, 'check every SHA-256', **define)
  flags.DEFINE_bool(
    'hash', False, "print the newest state's SHA-256 alone", **define
  )
  flags.DEFINE_string('json', '', 'write what is printed as JSON', **define)
  flags_lib.parse(
    values, argv, 'inspect', 'Looks at a run: seekax inspect <workdir>.'
  )
  flags_lib.require(values, 'workdir')
  workdir = pathlib.Path(values.workdir)
  if not workdir.is_dir():
    raise InputError(f'{workdir} does not exist')
  config = workdir_lib.read_config(workdir)
  from seekax.storage import checkpoint

  folder = workdir / workdir_lib.CHECKPOINTS
  steps = checkpoint.proven_steps(folder)
  if values.hash:
    print(_state_hash(workdir))
    return 0
  counts = count_parameters(config.model)
  found: dict[str, Any] = {
    'attention': config.model.attention,
    'ffn': config.model.ffn,
    'layers': config.model.num_layers,
    'parameters_total': counts.total,
    'parameters_activated': counts.activated,
    'parameters_mtp': counts.mtp,
    'tokenizer': (workdir / workdir_lib.TOKENIZER).is_file(),
    'checkpoints': steps,
    'unproven_checkpoints': checkpoint.unproven_steps(folder),
  }
  if values.verify:
    for step in steps:
      checkpoint.verify(folder, step)
    found['verified'] = steps
  for name, value in found.items():
    print(f'{name}: {value}')
  if values.json:
    _write_json(pathlib.Path(values.json), found)
  return 0


def _with_named_path(argv: Sequence[str]) -> list[str]:
  """The path may stand alone: `seekax inspect --hash runs/demo`."""
  words = []
  for word in argv:
    is_value = bool(words) and words[-1] in ('--json', '--workdir')
    bare = not word.startswith('-') and not is_value
    words.append(f'--workdir={word}' if bare else word)
  return words


def _write_json(path: pathlib.Path, found: dict[str, Any]) -> None:
  try:
    write_atomically(path, json.dumps(found, indent=2) + '\n')
  except OSError as error:
    raise InputError(f'--json={path}: {error.strerror}') from error


def _state_hash(workdir: pathlib.Path) -> str:
  from seekax.storage import checkpoint
  from seekax.storage import open as open_lib
  from seekax.training import state

  step = open_lib.newest_step(workdir)
  config = workdir_lib.read_config(workdir)
  parts, _ = checkpoint.restore(
    workdir / workdir_lib.CHECKPOINTS,
    step,
    state.to_parts(state.abstract_state(config)),
  )
  return checkpoint.state_hash(parts)
