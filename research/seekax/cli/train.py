"""`seekax train`: train a model, or go on with a run that was stopped."""

from collections.abc import Sequence
import json
import os
import pathlib
import shlex
import signal
import sys
from typing import Any

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.config import Config, InputError, to_dict
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import StorageError

NOT_FINITE = 3

# Keys that a run may change when it goes on: none of them touches the state.
_FREE_GROUPS = ('eval', 'parallel')
_FREE_KEYS = (
  'train.log_every',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'train.price_per_device_hour',
  'train.compilation_cache',
  'train.profile_steps',
)


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'workdir', '', 'folder of the run; made if missing', flag_values=values
  )
  flags.DEFINE_string(
    'restore',
    'newest',
    "the checkpoint to go on from: newest, previous, or a step's number",
    flag_values=values,
  )
  given = argv
  argv, has_config = flags_lib.define_config(values, argv)
  flags_lib.parse(
    values,
    argv,
    'train',
    'Trains a model. The same command again goes on where the run stopped.',
  )
  flags_lib.require(values, 'workdir')
  workdir = pathlib.Path(values.workdir)
  if has_config:
    config, overrides = flags_lib.config_of(values)
  elif (workdir / workdir_lib.RUN).is_file():
    config = workdir_lib.read_config(workdir)
    overrides = workdir_lib.read_run(workdir).get('overrides', {})
  else:
    raise InputError(
      "--config= is missing: a preset or config file, e.g. 'demo'; only a "
      '--workdir that holds a run can do without'
    )
  workdir_lib.prepare(workdir)
  with workdir_lib.lock(workdir):
    step = None
    if workdir_lib.has_checkpoint(workdir):
      _refuse_other_config(workdir, config)
      step = _step_to_restore(workdir, values.restore)
    elif values.restore != 'newest':
      raise InputError(
        f'--restore={values.restore}: {workdir} holds no checkpoint'
      )
    command = shlex.join(['seekax', 'train', *given])
    return _train(config, overrides, workdir, step, command)


def _train(
  config: Config,
  overrides: dict[str, Any],
  workdir: pathlib.Path,
  step: int | None,
  command: str,
) -> int:
  stop = _Stop()
  # Only now: everything above answers in a fraction of a second.
  from seekax.ops import host_memory
  from seekax.training import journal, launch

  host_memory.keep_freed_memory()

  try:
    finished = launch.start(
      config, overrides, workdir, stop.requested, command, step
    )
  except journal.NonFiniteError as error:
    print(f'seekax: {error}; {_last_good(workdir)}', file=sys.stderr)
    return NOT_FINITE
  if not finished:
    saved = workdir_lib.has_checkpoint(workdir)
    print(
      f'stopped{" and saved" if saved else " before the first step"}; go on '
      f'with: seekax train --workdir={shlex.quote(str(workdir))}',
      file=sys.stderr,
    )
    return 128 + stop.signal
  summary = json.loads((workdir / workdir_lib.SUMMARY).read_text())
  print(f'report: {workdir / workdir_lib.REPORT}', file=sys.stderr)
  print(json.dumps(summary))
  return 0


def _refuse_other_config(workdir: pathlib.Path, config: Config) -> None:
  """Raises StorageError, with the difference, for another run's workdir."""
  old, new = to_dict(workdir_lib.read_config(workdir)), to_dict(config)
  changed = [
    f'{group}.{key}: {old[group][key]!r} there, {value!r} here'
    for group, entries in new.items()
    if group not in _FREE_GROUPS
    for key, value in entries.items()
    if f'{group}.{key}' not in _FREE_KEYS and old[group][key] != value
  ]
  if changed:
    raise StorageError(
      f'--workdir={workdir} holds a run of another config ('
      + '; '.join(changed)
      + '); choose another folder, or leave --config out to go on with that run'
    )


def _step_to_restore(workdir: pathlib.Path, word: str) -> int | None:
  """The step that --restore names; None for the newest."""
  from seekax.storage import checkpoint

  if word == 'newest':
    return None
  steps = checkpoint.proven_steps(workdir / workdir_lib.CHECKPOINTS)
  if word == 'previous' and len(steps) > 1:
    return steps[-2]
  if word.isdecimal() and int(word) in steps:
    return int(word)
  raise InputError(
    f'--restore={word} is none of newest, previous and the steps that '
    f'{workdir} holds: {", ".join(map(str, steps))}'
  )


def _last_good(workdir: pathlib.Path) -> str:
  from seekax.storage import checkpoint

  step = checkpoint.newest(workdir / workdir_lib.CHECKPOINTS)
  if step is None:
    return 'no checkpoint had been saved'
  return f'the last good checkpoint is step {step} in {workdir}'


class _Stop:
  """Ctrl-C and SIGTERM ask the loop to save and end; a second one kills."""

  def __init__(self):
    self.signal = 0
    for number in (signal.SIGINT, signal.SIGTERM):
      signal.signal(number, self._on_signal)

  def _on_signal(self, number: int, frame: Any) -> None:
    del frame
    self.signal = number
    for either in (signal.SIGINT, signal.SIGTERM):
      signal.signal(either, signal.SIG_DFL)
    os.write(2, b'\nstopping after this step, saving a checkpoint\n')

  def requested(self) -> bool:
    return self.signal != 0
