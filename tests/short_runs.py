"""Small runs for tests: a corpus, a config, the command line in a process."""

import contextlib
import dataclasses
import io
import os
import pathlib
import random
import subprocess
import sys
from unittest import mock

from seekax.cli.main import main
from seekax.configuration import presets
from seekax.configuration.config import Config, from_config_dict

ROOT = pathlib.Path(__file__).parents[1]


def write_corpus(folder: pathlib.Path, documents: int = 24) -> pathlib.Path:
  """Small generated Python-like files."""
  folder.mkdir(parents=True, exist_ok=True)
  draw = random.Random(0)
  for number in range(documents):
    lines = [
      f'def f{draw.randrange(100)}(x, y):\n  return x * {draw.randrange(9)} + y'
      for _ in range(20)
    ]
    (folder / f'file{number:02d}.py').write_text('\n'.join(lines) + '\n')
  return folder


def small_config(source: pathlib.Path, **train) -> Config:
  """`tiny` with MTP and balancing on, on a small corpus."""
  run = presets.shrink_run(presets.run_of(presets.tiny()))
  config = from_config_dict(run)
  return dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data, source=str(source), heldout_fraction=0.2
    ),
    train=dataclasses.replace(
      config.train, **{'steps': 8, 'checkpoint_every': 4, **train}
    ),
    eval=dataclasses.replace(
      config.eval, every=4, sample_every=8, sample_tokens=4, prompts=('def f',)
    ),
  )


def seekax(*args: str, **kwargs) -> subprocess.CompletedProcess:
  """Runs the command line to its end."""
  return subprocess.run(
    command(*args), capture_output=True, text=True, check=False, **kwargs
  )


def in_process(
  *args: str, cwd: str | os.PathLike = '.'
) -> subprocess.CompletedProcess:
  """The same in this process: for what is refused before a model is touched."""
  out, err = io.StringIO(), io.StringIO()
  with (
    # It is for the rest of a process.
    mock.patch('seekax.machine.host_memory.keep_freed_memory'),
    contextlib.chdir(cwd),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    try:
      code = main(args)
    except SystemExit as end:
      code = end.code
  return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def start(*args: str) -> subprocess.Popen:
  """Starts the command line; its stderr can be read line by line."""
  return subprocess.Popen(
    command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def command(*args: str) -> list[str]:
  return [sys.executable, '-m', 'seekax', *args]


def wait_for_step(process: subprocess.Popen, step: int) -> None:
  """Reads a training run's stderr until it has logged this step."""
  assert process.stderr
  for line in process.stderr:
    words = line.split()
    if words[:1] == ['step'] and int(words[1].split('/')[0]) >= step:
      return
  raise AssertionError(f'the run ended before step {step}')


os.environ.setdefault('JAX_PLATFORMS', 'cpu')
