"""A workdir: its files, its lock, what it was run with."""

import fcntl
import json
import os
import pathlib
from typing import Any

from seekax.config import Config, ConfigError, from_dict
from seekax.storage.manifest import StorageError, write_atomically

RUN, TOKENIZER, METRICS = 'run.json', 'tokenizer.json', 'metrics.jsonl'
SUMMARY, REPORT, SAMPLES = 'summary.json', 'report.html', 'samples'
CHECKPOINTS, TENSORBOARD = 'checkpoints', 'tensorboard'
# Steps that were thrown away, with the documents of their batches.
SKIPPED = 'skipped.jsonl'
# Names of control tokens and the chat template, where the tokenizer came with
# them.
TOKENIZER_COMPANIONS = (
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'chat_template.json',
)
# Of a convert target: safetensors, their SHA-256, and the config.json that
# they were published with.
WEIGHTS, WEIGHTS_MANIFEST = 'weights', 'weights.sha256'
PUBLISHED_CONFIG = 'published_config.json'


def prepare(workdir: pathlib.Path, flag: str = 'workdir') -> None:
  """Makes the folder, or finds it writable.

  Raises:
    StorageError: it can't be made or written.
  """
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


def lock(workdir: pathlib.Path, flag: str = 'workdir'):
  """Holds the workdir until the process ends or the file is closed.

  Raises:
    StorageError: another run holds it.
  """
  file = open(workdir / '.lock', 'w', encoding='utf-8')
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
  """Whether a run got far enough that another one would destroy something."""
  return any((workdir / CHECKPOINTS).glob('*.sha256'))


def has_weights(workdir: pathlib.Path) -> bool:
  """Whether this is a finished convert target."""
  return (workdir / WEIGHTS_MANIFEST).is_file()


def write_run(workdir: pathlib.Path, run: dict[str, Any]) -> None:
  """Writes run.json: config, overrides, commit, versions, origin."""
  write_atomically(workdir / RUN, json.dumps(run, indent=2) + '\n')


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
  """Reads run.json.

  Raises:
    StorageError: there is none, or it can't be read.
  """
  path = workdir / RUN
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise StorageError(
      f'{workdir} is no workdir: it has no {RUN}; give the --workdir of a '
      'training run'
    ) from error
  except (OSError, ValueError, RecursionError) as error:
    raise StorageError(f'{path} can not be read: {error}') from error


def read_config(workdir: pathlib.Path) -> Config:
  """The resolved config of the run in a workdir.

  Raises:
    StorageError: there is no run, or its config is not one of this version.
  """
  run = read_run(workdir)
  try:
    return from_dict(run['config'])
  except (ConfigError, KeyError, TypeError, AttributeError) as error:
    raise StorageError(f'{workdir / RUN}: {error}') from error
