"""`seekax train`: trains a model, or resumes a run that was stopped."""

from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shlex
import signal
import sys
from typing import Any

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.cli import launcher
from seekax.configuration.config import Config, to_dict
from seekax.configuration.errors import InputError
from seekax.configuration.fit_on_mesh import check_mesh
from seekax.data import sources
from seekax.files import read_bounded
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import StorageError

COMPUTES_WRONG = 4
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


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  values = flags.FlagValues()
  _define_flags(values)
  named = flags_lib.config_name(argv)
  left, has_config = flags_lib.define_config(
    values, argv, None if named else _run_of(argv)
  )
  flags_lib.parse(
    values,
    left,
    'train',
    'Trains a model. The same command again goes on where the run stopped.',
  )
  flags_lib.require(values, 'workdir')
  if not has_config:
    raise InputError(
      "--config= is missing: a config's name or file, e.g. 'demo'; only a "
      '--workdir that holds a run can do without'
    )
  workdir = pathlib.Path(values.workdir)
  config, overrides = flags_lib.config_of(values)
  config = sources.absolute_paths(config, os.getcwd())
  about = {
    'command': shlex.join(['seekax', 'train', *argv]),
    'folder': os.getcwd(),
  }
  if named:
    about['config_file'] = flags_lib.describe_config(named)
  else:
    kept = workdir_lib.read_run(workdir)
    about['config_file'] = kept.get('config_file', '')
    overrides = kept.get('overrides', {}) | overrides
  check_mesh(config)
  workdir_lib.refuse_foreign(workdir)
  first = _join(values)
  made = workdir_lib.prepare(workdir)
  # All processes of a run share one lock.
  with workdir_lib.lock(workdir) if first else contextlib.nullcontext():
    try:
      step = _step_to_go_on_from(workdir, config, values.restore)
      if step is not None and step >= config.train.steps:
        return _finished(workdir, step, first)
      restore_step = None if values.restore == 'newest' else step
      return _train(
        config, overrides, workdir, restore_step, about, first, values.verbose
      )
    finally:
      if first:
        workdir_lib.forget(workdir, made)


def _define_flags(values: flags.FlagValues) -> None:
  flags_lib.define_path(
    values, 'workdir', 'folder of the run: new, empty, or that of a run'
  )
  flags.DEFINE_string(
    'restore',
    'newest',
    "the checkpoint to go on from: newest, previous, or a step's number",
    flag_values=values,
  )
  flags.DEFINE_bool(
    'verbose',
    False,
    'print the whole config and every parameter before the first step',
    flag_values=values,
  )
  launcher.define_flags(values)


def _run_of(argv: Sequence[str]) -> Config | None:
  """The config of the run in --workdir, if there is one."""
  for word, following in zip(argv, [*argv[1:], ''], strict=True):
    match = re.fullmatch(r'--?workdir(?:=(.*))?', word, re.DOTALL)
    if not match:
      continue
    workdir = pathlib.Path(match[1] or following).expanduser()
    if (workdir / workdir_lib.RUN).is_file():
      return workdir_lib.read_config(workdir)
  return None


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


def _finished(workdir: pathlib.Path, step: int, first: bool) -> int:
  """Says that the run is done; writes report and summary again.

  Raises:
    StorageError: a file of the last checkpoint was changed.
  """
  if not first:
    return 0
  from seekax.report import run as report
  from seekax.storage import checkpoint

  checkpoint.verify(workdir / workdir_lib.CHECKPOINTS, step)
  report.write(workdir)
  print(
    f'finished at {step:,}/{step:,}; --config.train.steps=N goes on',
    file=sys.stderr,
  )
  _print_summary(workdir)
  return 0


def _join(values: flags.FlagValues) -> bool:
  """Joins the other processes, if any; returns whether this is the first."""
  found = launcher.described(
    values.coordinator, values.num_processes, values.process_id
  )
  if found is None:
    return True
  from seekax.machine import processes

  processes.join(*dataclasses.astuple(found), values.start_timeout)
  return processes.is_first()


def _train(
  config: Config,
  overrides: dict[str, Any],
  workdir: pathlib.Path,
  step: int | None,
  about: dict[str, str],
  first: bool,
  verbose: bool,
) -> int:
  stop = _Stop()
  try:
    with stop:
      # Imported late: everything above answers in a fraction of a second.
      from seekax.machine import host_memory
      from seekax.runs import journal, launch, replay

      host_memory.keep_freed_memory()
      finished = launch.start(
        config, overrides, workdir, stop.requested, about, step, verbose
      )
  except (journal.NonFiniteError, replay.ReplayError) as error:
    print(f'seekax: {error}; {_last_good(workdir)}', file=sys.stderr)
    lost = isinstance(error, journal.NonFiniteError)
    return flags_lib.NOT_FINITE if lost else COMPUTES_WRONG
  if not finished:
    saved = workdir_lib.has_checkpoint(workdir)
    if first:
      print(
        f'stopped{" and saved" if saved else " before the first step"}; go on '
        f'with: seekax train --workdir={shlex.quote(str(workdir))}',
        file=sys.stderr,
      )
    # The signal may have come to another process.
    return 128 + (stop.signal or signal.SIGTERM)
  if not first:
    return 0
  print(f'report: {workdir / workdir_lib.REPORT}', file=sys.stderr)
  _print_summary(workdir)
  return 0


def _print_summary(workdir: pathlib.Path) -> None:
  """Prints summary.json on one line."""
  path = workdir / workdir_lib.SUMMARY
  print(json.dumps(json.loads(read_bounded(path, 'summary.json'))))


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
      flags_lib.say(f'compute.{key}: {before!r} before, {value!r} now')


def _shown(value: Any) -> str:
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


def _with_absolute_paths(config: Config, run: dict[str, Any]) -> Config:
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
    self._before = {}

  def __enter__(self) -> '_Stop':
    for number in (signal.SIGINT, signal.SIGTERM):
      self._before[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(self, *unused) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _on_signal(self, number: int, frame: Any) -> None:
    del frame
    self.signal = number
    for either in self._before:
      signal.signal(either, signal.SIG_DFL)
    os.write(2, b'\nstopping after this step, saving a checkpoint\n')

  def requested(self) -> bool:
    return self.signal != 0
