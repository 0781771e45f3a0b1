"""`seekax train`: trains a model, or resumes a run that was stopped."""

from collections.abc import Sequence
import json
import os
import pathlib
import re
import shlex
import signal
import sys
import types

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.cli import launcher
from seekax.configuration import named as named_lib
from seekax.configuration.config import Config
from seekax.configuration.errors import InputError
from seekax.data import sources
from seekax.runs import resume
from seekax.storage import workdir as workdir_lib

COMPUTES_WRONG = 4


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
    about['config_file'] = named_lib.describe_config(named)
  else:
    kept = workdir_lib.read_run(workdir)
    about['config_file'] = kept.get('config_file', '')
    overrides = kept.get('overrides', {}) | overrides
  resume.check(config, workdir)
  first = _join(values)
  stop = _Stop()
  try:
    with stop:
      outcome = resume.run(
        config,
        workdir,
        overrides,
        about,
        restore=values.restore,
        should_stop=stop.requested,
        verbose=values.verbose,
        first=first,
      )
  except RuntimeError as error:
    code = _code_of(error)
    if not code:
      raise
    print(f'seekax: {error}; {_last_good(workdir)}', file=sys.stderr)
    return code
  if outcome is resume.Outcome.STOPPED:
    if first:
      _say_how_to_go_on(workdir)
    # The signal may have come to another process.
    return 128 + (stop.signal or signal.SIGTERM)
  if first:
    if outcome is resume.Outcome.NOTHING_LEFT:
      _say_finished(workdir)
    else:
      print(f'report: {workdir / workdir_lib.REPORT}', file=sys.stderr)
    print(json.dumps(workdir_lib.read_summary(workdir)))
  return 0


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


def _join(values: flags.FlagValues) -> bool:
  """Joins the other processes, if any; returns whether this is the first."""
  found = launcher.described(
    values.coordinator, values.num_processes, values.process_id
  )
  if found is None:
    return True
  from seekax.machine import processes

  processes.join(
    found.coordinator, found.count, found.index, values.start_timeout
  )
  return processes.is_first()


def _code_of(error: RuntimeError) -> int:
  """The exit code for an error that ends a run; 0 for other errors."""
  from seekax.runs import journal, replay

  if isinstance(error, journal.NonFiniteError):
    return flags_lib.NOT_FINITE
  return COMPUTES_WRONG if isinstance(error, replay.ReplayError) else 0


def _say_how_to_go_on(workdir: pathlib.Path) -> None:
  saved = workdir_lib.has_checkpoint(workdir)
  flags_lib.say(
    f'stopped{" and saved" if saved else " before the first step"}; go on '
    f'with: seekax train --workdir={shlex.quote(str(workdir))}'
  )


def _say_finished(workdir: pathlib.Path) -> None:
  from seekax.storage import checkpoint

  step = checkpoint.newest(workdir / workdir_lib.CHECKPOINTS)
  flags_lib.say(
    f'finished at {step:,}/{step:,}; --config.train.steps=N goes on'
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

  def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
    del frame
    self.signal = number
    for either in self._before:
      signal.signal(either, signal.SIG_DFL)
    os.write(2, b'\nstopping after this step, saving a checkpoint\n')

  def requested(self) -> bool:
    return self.signal != 0
