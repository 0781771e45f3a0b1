"""Starts or resumes the run of a workdir, or finds that it is finished.

JAX is imported late, so that errors show within a fraction of a second.
"""

from collections.abc import Callable, Mapping
import contextlib
import enum
import os
import pathlib
import sys

from seekax.configuration.config import Config, to_dict
from seekax.configuration.errors import InputError
from seekax.configuration.fit_on_mesh import check_mesh
from seekax.data import sources
from seekax.files import JsonObject
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import StorageError

# Number of characters that a message shows of a value.
_SHOWN = 90

# Keys that may change when a run resumes, because none affects the state.
_FREE_GROUPS = ('compute', 'eval', 'parallel')
_FREE_KEYS = (
  'data.max_document_bytes',
  'train.log_every',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'train.price_per_device_hour',
  'train.compilation_cache',
  'train.profile_steps',
  'train.replay_every',
)
# Keys that decide a step's rates and batch: they may change as long as the
# steps already done stay the same.
_SCHEDULE_KEYS = (
  'train.steps',
  'train.ramp_tokens',
  'train.ramp_micro_batches',
  'train.mtp_weight_tokens',
  'train.mtp_late_weight',
  'train.bias_update_tokens',
  'optim.warmup_steps',
  'optim.constant_tokens',
  'optim.decay_tokens',
  'optim.final_tokens',
  'optim.final_learning_rate',
  'optim.last_learning_rate',
)


class Outcome(enum.Enum):
  """How a call of `run` ended."""

  NOTHING_LEFT = 'the last step had been reached before'
  FINISHED = 'the last step was reached'
  STOPPED = 'the run was told to stop'


def check(config: Config, workdir: pathlib.Path) -> None:
  """Raises the errors that can be found before anything is written.

  Raises:
    ConfigError: the mesh doesn't fit the model or the batch.
    StorageError: the folder holds other people's files.
  """
  check_mesh(config)
  workdir_lib.refuse_foreign(workdir)


def run(
  config: Config,
  workdir: pathlib.Path,
  overrides: JsonObject,
  about: Mapping[str, str],
  *,
  restore: str = 'newest',
  should_stop: Callable[[], bool] = lambda: False,
  verbose: bool = False,
  first: bool = True,
) -> Outcome:
  """Trains in a workdir, from its current step to the last one.

  Args:
    config: the run's config, checked by `check`.
    workdir: a new or empty folder, or that of the same run.
    overrides: keys of a named config that the user changed.
    about: what the user typed and where, for run.json: `command`,
      `config_file`, `folder`.
    restore: the checkpoint to resume from: newest, previous, or a step.
    should_stop: called after every step; if true, the run saves and returns.
    verbose: whether to print the whole config and every parameter.
    first: whether this is the first process of the run.

  Raises:
    InputError: the data, the mesh or the workdir can't be used.
    NonFiniteError: see loop.run.
    ReplayError: see loop.run.
  """
  made = workdir_lib.prepare(workdir)
  # All processes of a run share one lock.
  with workdir_lib.lock(workdir) if first else contextlib.nullcontext():
    try:
      step = _step_to_go_on_from(workdir, config, restore)
      if step is not None and step >= config.train.steps:
        if first:
          _look_again(workdir, step)
        return Outcome.NOTHING_LEFT
      from seekax.machine import host_memory
      from seekax.runs import launch

      host_memory.keep_freed_memory()
      finished = launch.start(
        config,
        overrides,
        workdir,
        should_stop,
        about,
        None if restore == 'newest' else step,
        verbose,
      )
      return Outcome.FINISHED if finished else Outcome.STOPPED
    finally:
      if first:
        workdir_lib.forget(workdir, made)


def _look_again(workdir: pathlib.Path, step: int) -> None:
  """Verifies a finished run's last checkpoint; writes report and summary again.

  Raises:
    StorageError: a file of the checkpoint was changed.
  """
  from seekax.report import run as report
  from seekax.storage import checkpoint

  checkpoint.verify(workdir / workdir_lib.CHECKPOINTS, step)
  report.write(workdir)


def _step_to_go_on_from(
  workdir: pathlib.Path, config: Config, restore: str
) -> int | None:
  """Returns the step of the checkpoint to resume from; None for a new run.

  Raises:
    StorageError: the workdir holds another run, or lacks the checkpoint.
  """
  if not workdir_lib.has_checkpoint(workdir):
    if restore != 'newest':
      raise InputError(f'--restore={restore}: {workdir} holds no checkpoint')
    return None
  from seekax.storage import checkpoint

  step = _step_to_restore(workdir, restore)
  if step is None:
    step = checkpoint.newest(workdir / workdir_lib.CHECKPOINTS)
  _refuse_other_config(workdir, config, step or 0)
  return step


def _refuse_other_config(
  workdir: pathlib.Path, config: Config, step: int
) -> None:
  """Raises StorageError, with the difference, for another run's workdir.

  The schedule may change if the steps already done stay the same: a finished
  run can be continued with more steps.
  """
  run = workdir_lib.read_run(workdir)
  there = workdir_lib.read_config(workdir)
  old, new = to_dict(_with_absolute_paths(there, run)), to_dict(config)
  changed = {
    f'{group}.{key}': f'{_shown(old[group][key])} there, {_shown(value)} here'
    for group, entries in new.items()
    if group not in _FREE_GROUPS
    for key, value in entries.items()
    if f'{group}.{key}' not in _FREE_KEYS and old[group][key] != value
  }
  others = [
    f'{key}: {text}'
    for key, text in changed.items()
    if key not in _SCHEDULE_KEYS
  ]
  if others:
    raise StorageError(
      f'--workdir={workdir} holds a run of another config ('
      + '; '.join(others)
      + '); choose another folder, or leave --config out to go on with that run'
    )
  if changed:
    _refuse_other_schedule(workdir, there, config, step)
  for key, value in new['compute'].items():
    before = old['compute'][key]
    if value != before:
      _say(f'compute.{key}: {before!r} before, {value!r} now')


def _shown(value: object) -> str:
  """A value for a message; if it is long, its end, which tells the most."""
  text = repr(value)
  return text if len(text) <= _SHOWN else f'...{text[-_SHOWN:]}'


def _refuse_other_schedule(
  workdir: pathlib.Path, there: Config, here: Config, step: int
) -> None:
  """Raises StorageError if the schedule would change steps already done."""
  from seekax.training.schedules import Schedule

  if here.train.steps < step:
    raise StorageError(
      f'train.steps={here.train.steps} is below the {step} steps that '
      f'{workdir} is trained for; raise it'
    )
  old = Schedule(there)
  difference = old.first_difference(Schedule(here), step)
  if not difference:
    return
  hint = 'choose another folder, or leave the schedule as it was'
  if not there.optim.decay_tokens and not here.optim.decay_tokens:
    hint = (
      'the decay of optim.decay_tokens=0 ends with the run; '
      f'--config.optim.decay_tokens={old.decay_tokens} ends it where it ended, '
      'and further steps keep optim.final_learning_rate'
    )
  raise StorageError(
    f'{workdir} is at step {step}, and steps that are done would have been '
    f'others: {difference}; {hint}'
  )


def _with_absolute_paths(config: Config, run: JsonObject) -> Config:
  """A run.json's config with absolute paths; older ones may be relative."""
  folder = run.get('folder')
  return sources.absolute_paths(config, folder if folder else os.getcwd())


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


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
