"""A workdir: its files, its lock, and the record of its run."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re

from seekax.configuration.compute import ComputeConfig
from seekax.configuration.config import Config, from_dict
from seekax.configuration.errors import ConfigError
from seekax.files import (
  JsonObject,
  left_by_system,
  parse_json,
  quoted,
  read_bounded,
  reason,
  write_atomically,
)
from seekax.storage.manifest import StorageError

RUN, TOKENIZER, METRICS = 'run.json', 'tokenizer.json', 'metrics.jsonl'
SUMMARY, REPORT, SAMPLES = 'summary.json', 'report.html', 'samples'
CHECKPOINTS, TENSORBOARD, LOCK = 'checkpoints', 'tensorboard', '.lock'
# Training steps that were discarded, with the documents of their batches.
SKIPPED = 'skipped.jsonl'
# Names of control tokens and the chat template, if the tokenizer came with
# them.
TOKENIZER_COMPANIONS = (
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'chat_template.json',
  'generation_config.json',
)
# Files of a convert target: safetensors, their SHA-256, and the config.json
# that they were published with.
WEIGHTS, WEIGHTS_MANIFEST = 'weights', 'weights.sha256'
PUBLISHED_CONFIG = 'published_config.json'


# Left by a start that was killed before it had written run.json.
_OWN_TRACES = re.compile(r'\.lock|\.probe-\d+|run\.json\.tmp-\d+')
_MOST_NAMED = 3


def refuse_foreign(workdir: pathlib.Path) -> None:
  """Raises for a folder that holds something and isn't a workdir of ours.

  A run writes and deletes files under its own names, so it could overwrite the
  user's files there. This function writes nothing.

  Raises:
    StorageError: it isn't new or empty, and has no run.json of ours.
    StorageError: it is neither new, nor empty, nor has a run.json of ours.
  """
  if not workdir.is_dir() or is_workdir(workdir):
    return
  try:
    found = sorted(path.name for path in workdir.iterdir() if _counts(path))
  except OSError as error:
    raise StorageError(
      f'--workdir={workdir} can not be read ({error.strerror})'
    ) from error
  if found:
    names = ', '.join(map(repr, found[:_MOST_NAMED]))
    more = len(found) - _MOST_NAMED
    raise StorageError(
      f'--workdir={workdir} holds {names}'
      + (f' and {more:,} more' if more > 0 else '')
      + f', and no {RUN} of a run: its files could be replaced; choose a '
      'new or empty folder'
    )


def is_workdir(folder: pathlib.Path) -> bool:
  """Whether a folder has a run.json that a seekax run wrote."""
  try:
    config = read_run(folder).get('config')
  except (StorageError, AttributeError):
    return False
  return isinstance(config, dict) and {'model', 'data', 'train'} <= set(config)


def _counts(path: pathlib.Path) -> bool:
  """Whether a file is the user's, not the system's or a trace of ours."""
  if left_by_system(path.name):
    return False
  ours = _OWN_TRACES.fullmatch(path.name) and path.is_file()
  return not (ours and (path.stat().st_size == 0 or '.tmp-' in path.name))


def prepare(workdir: pathlib.Path, flag: str = 'workdir') -> list[pathlib.Path]:
  """Creates the folder, or checks that it is writable.

  Returns:
    The folders that were created, outermost first.

  Raises:
    StorageError: it can't be created or written.
  """
  missing = [
    folder for folder in (workdir, *workdir.parents) if not folder.exists()
  ]
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / f'.probe-{os.getpid()}'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise StorageError(
      f'--{flag}={workdir} is not writable ({error.strerror}); choose '
      'another folder or change its permissions'
    ) from error
  return missing[::-1]


def forget(workdir: pathlib.Path, made: list[pathlib.Path]) -> None:
  """Removes the traces of a start that failed before it wrote run.json.

  Args:
    workdir: prepared and locked.
    made: the folders that `prepare` created; empty ones are removed.
  """
  if (workdir / RUN).exists():
    return
  with contextlib.suppress(OSError):
    (workdir / LOCK).unlink(missing_ok=True)
    for folder in reversed(made):
      folder.rmdir()


def lock(workdir: pathlib.Path, flag: str = 'workdir'):
  """Holds the workdir until the process ends or the file is closed.

  Raises:
    StorageError: another run holds it.
  """
  # Opened to append, so that existing content stays.
  file = open(workdir / LOCK, 'a', encoding='utf-8')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.close()
    raise StorageError(
      f'--{flag}={workdir} is in use by another run; wait for it or choose '
      'another folder'
    ) from error
  return file


def has_checkpoint(workdir: pathlib.Path) -> bool:
  """Whether the folder has a checkpoint, which another run would destroy."""
  return any((workdir / CHECKPOINTS).glob('*.sha256'))


def has_weights(workdir: pathlib.Path) -> bool:
  """Whether this is a finished convert target."""
  return (workdir / WEIGHTS_MANIFEST).is_file()


def write_run(workdir: pathlib.Path, run: JsonObject) -> None:
  """Writes run.json: config, overrides, commit, versions, origin."""
  write_atomically(workdir / RUN, json.dumps(run, indent=2) + '\n')


def read_run(workdir: pathlib.Path) -> JsonObject:
  """Reads run.json.

  Raises:
    StorageError: there is none, or it can't be read.
  """
  path = workdir / RUN
  if not os.path.lexists(path):
    raise StorageError(
      f'{workdir} is no workdir: it has no {RUN}; give the --workdir of a '
      'training run'
    )
  run = parse_json(
    path, read_bounded(path, 'run.json', StorageError), StorageError
  )
  if not isinstance(run, dict):
    raise StorageError(f'{path} is no JSON object')
  return run


# Keys that configs had in older versions, with what a run now does.
_GONE = {
  'model': {'latent_norm_eps': 1e-6},
  'optim': {'muon_momentum': 0.95, 'muon_rms': 0.2},
  'train': {'center_bias': False},
}


def _of_this_version(groups: JsonObject) -> JsonObject:
  """Reads a config of an older version.

  `compute` was part of `model`, and some keys are gone. One of these stays, to
  be refused, if its value is another than what a run now does.
  """
  groups = {
    name: {
      key: value
      for key, value in entries.items()
      if value != _GONE.get(name, {}).get(key, object())
    }
    for name, entries in groups.items()
  }
  if 'compute' in groups or 'model' not in groups:
    return groups
  keys = {field.name for field in dataclasses.fields(ComputeConfig)}
  model = groups['model']
  return {
    **groups,
    'model': {k: v for k, v in model.items() if k not in keys},
    'compute': {k: v for k, v in model.items() if k in keys},
  }


def read_summary(workdir: pathlib.Path) -> JsonObject:
  """Reads the results of a run from its summary.json."""
  path = workdir / SUMMARY
  return parse_json(path, read_bounded(path, SUMMARY))


def read_config(workdir: pathlib.Path) -> Config:
  """Returns the resolved config of a workdir's run.

  Raises:
    StorageError: there is no run, or its config isn't one of this version.
  """
  path, groups = workdir / RUN, read_run(workdir).get('config')
  if not isinstance(groups, dict):
    raise StorageError(f'{path} has no config; it was changed, or is no run')
  for name, entries in groups.items():
    if not isinstance(entries, dict):
      raise StorageError(
        f'{path}: config.{quoted(name)} is no group of keys and values'
      )
  try:
    return from_dict(_of_this_version(groups))
  except ConfigError as error:
    raise StorageError(f'{path}: {error}') from error
  except (TypeError, ValueError, OverflowError, ArithmeticError) as error:
    raise StorageError(
      f'{path}: the config holds a value that can not be ({reason(error)})'
    ) from error
