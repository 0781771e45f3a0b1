"""What every fault needs: short real runs, ways to hurt them, plain checks."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import io
import os
import pathlib
import random
import sys
import threading

from commands import check, Runner, Running, Said

import seekax
from seekax.cli import main
from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib

_LAUNCHER = pathlib.Path(__file__).with_name('launcher.py')
STEPS = 40


class NotRunError(Exception):
  """This machine can't inject the fault; the text says why."""


@dataclasses.dataclass(frozen=True)
class Fault:
  """One row of the table.

  Attributes:
    number: a short name, unique.
    what: what goes wrong.
    promise: what happens then.
    inject: does it; returns what was measured, in words.
    quick: it takes some seconds, and is part of `make test`.
    tests: paths of the classes of tests that it runs, for whoever runs these
      besides.
  """

  number: str
  what: str
  promise: str
  inject: Callable[['Bench'], str]
  quick: bool = False
  tests: tuple[str, ...] = ()


class Bench:
  """A folder with two small sources, and commands that train on them."""

  def __init__(self, root: pathlib.Path):
    """Makes the sources.

    Args:
      root: an empty folder; everything goes there.
    """
    self.root = root
    self._counter = 0
    self._lock = threading.Lock()
    self._hashes: dict[tuple[str, ...], str] = {}
    self._locks: dict[tuple[str, ...], threading.Lock] = {}
    self._runners: list[Runner] = []
    self._started: list[Running] = []
    for number, name in enumerate(('left', 'right')):
      write_source(root / name, seed=number)
    path = str(pathlib.Path(seekax.__path__[0]).parent)
    self.env = dict(os.environ, PYTHONPATH=path, JAX_PLATFORMS='cpu')
    self.env['PYTHONFAULTHANDLER'] = '1'
    if 'JAX_COMPILATION_CACHE_DIR' not in self.env:
      self.env['JAX_COMPILATION_CACHE_DIR'] = str(root / 'compiled')
      self.env['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
      self.env['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

  def folder(self, name: str) -> pathlib.Path:
    """A new one."""
    with self._lock:
      self._counter += 1
      folder = self.root / f'{self._counter:03d}-{name}'
    folder.mkdir()
    return folder

  def train(self, workdir: pathlib.Path, *more: str) -> list[str]:
    """Words of the command: a run on a mixture, some tenths of a second."""
    values = {
      'data.source': f'0.7*{self.root / "left"},0.3*{self.root / "right"}',
      'data.heldout_fraction': 0.2,
      'data.sequence_length': 32,
      'data.batch_size': 4,
      'data.num_shards': 2,
      'model.num_layers': 2,
      'train.steps': STEPS,
      'train.checkpoint_every': 10,
      'eval.every': 1000,
      'eval.sample_every': 1000,
      'eval.sample_tokens': 1,
      'eval.prompts': 'x',
    }
    given = [f'--config.{key}={value}' for key, value in values.items()]
    return ['train', '--config=tiny', f'--workdir={workdir}', *given, *more]

  def start(
    self,
    args: Sequence[str],
    fault: str = '',
    prefix: Sequence[str] = (),
    **env,
  ) -> Running:
    """Starts a command.

    Args:
      args: its words after `seekax`.
      fault: what launcher.py is to do to it; '' starts it plainly.
      prefix: words before the interpreter.
      **env: more environment.
    """
    log = self._log()
    program = [str(_LAUNCHER), fault] if fault else ['-m', 'seekax']
    command = [*prefix, sys.executable, *program, *args]
    running = Running(command, log, {**self.env, **env})
    self._started.append(running)
    return running

  def run(self, args: Sequence[str], **kwargs) -> tuple[int, Said]:
    """Runs a command to its end; returns its exit code and what it said.

    A fault, a prefix or an environment (see `start`) needs a process of its
    own. Another one is run by a process that has run others, but never one that
    was killed or hurt.
    """
    if any(kwargs.values()):
      running = self.start(args, **kwargs)
      return running.end(), running
    said = Said(self._log())
    with self._lock:
      runner = self._runners.pop() if self._runners else Runner(self.env)
    code = runner.run(args, said)
    with self._lock:
      self._runners.append(runner)
    return code, said

  def close(self) -> None:
    """Ends the processes that run commands, and what a fault left running."""
    for running in self._started:
      if running.process.poll() is None:
        running.process.kill()
        running.process.wait()
    while self._runners:
      self._runners.pop().close()

  def _log(self) -> pathlib.Path:
    with self._lock:
      self._counter += 1
      return self.root / f'{self._counter:03d}.log'

  def finish(self, args: Sequence[str], **kwargs) -> Said:
    """Runs a command that must succeed."""
    code, running = self.run(args, **kwargs)
    check(code == 0, f'exit {code}: {running.last_line()}')
    return running

  def unbroken(self, *more: str) -> pathlib.Path:
    """The workdir of the same run without a fault; made once."""
    with self._lock:
      lock = self._locks.setdefault(more, threading.Lock())
    with lock:
      if more not in self._hashes:
        workdir = self.folder('unbroken')
        self.finish(self.train(workdir, *more))
        self._hashes[more] = str(workdir)
    return pathlib.Path(self._hashes[more])

  def check_like_unbroken(self, workdir: pathlib.Path, *more: str) -> None:
    """The end of a run must be the unbroken one's, bit for bit."""
    ours, theirs = state_hash(workdir), state_hash(self.unbroken(*more))
    check(ours == theirs, f'hash {ours[:12]}, unbroken {theirs[:12]}')

  def check_refused(
    self, args: Sequence[str], *words: str, code: int = 2, **kwargs
  ) -> str:
    """The command must end with this exit code and one line; returns it."""
    returned, running = self.run(args, **kwargs)
    line = running.last_line()
    check(returned == code, f'exit {returned}, not {code}: {line}')
    check_one_line(running.said(), line)
    for word in words:
      check(word in line, f'{word!r} is not in: {line}')
    return line


_COMMAND_LOCK = threading.Lock()


def ask(*args: str) -> tuple[int, str, str]:
  """A command that needs no process of its own: (code, stdout, stderr)."""
  out, err = io.StringIO(), io.StringIO()
  with (
    _COMMAND_LOCK,
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    code = main.main(args)
  return code, out.getvalue(), err.getvalue()


def check_refused_here(args: Sequence[str], *words: str) -> str:
  """As Bench.check_refused, without a process of its own."""
  code, _, err = ask(*args)
  line = (err.strip().splitlines() or ['(nothing)'])[-1]
  check(code == 2, f'exit {code}, not 2: {line}')
  check_one_line(err, line)
  for word in words:
    check(word in line, f'{word!r} is not in: {line}')
  return line


def check_one_line(said: str, line: str) -> None:
  """The end must be one line for the user, without a traceback before it."""
  traces = [text for text in said.splitlines() if 'Traceback' in text]
  check(not traces, f'{len(traces)} tracebacks before: {line}')
  check(line.startswith('seekax: '), f'no clear line: {line}')


def state_hash(workdir: pathlib.Path) -> str:
  """What `seekax inspect --hash` prints."""
  code, out, err = ask('inspect', '--hash', str(workdir))
  check(code == 0 and len(out.strip()) == 64, err.strip())
  return out.strip()


def steps_of(workdir: pathlib.Path) -> list[int]:
  """The proven checkpoints."""
  return checkpoint.proven_steps(workdir / workdir_lib.CHECKPOINTS)


def leftovers(workdir: pathlib.Path) -> list[str]:
  """What lies among the checkpoints without being one."""
  steps = steps_of(workdir)
  known = {str(step) for step in steps} | {f'{step}.sha256' for step in steps}
  folder = workdir / workdir_lib.CHECKPOINTS
  return sorted({path.name for path in folder.iterdir()} - known)


def write_source(folder: pathlib.Path, seed: int, documents: int = 24) -> None:
  """Small Python-like files, some lines each."""
  folder.mkdir(parents=True)
  draw = random.Random(seed)
  for number in range(documents):
    lines = [
      f'def f{draw.randrange(100)}(x, y):\n  return x * {draw.randrange(9)} + y'
      for _ in range(draw.randrange(5, 30))
    ]
    (folder / f'file{number:02d}.py').write_text('\n'.join(lines) + '\n')


def flip_bit(path: pathlib.Path, draw: random.Random) -> None:
  """Changes one bit of a file."""
  data = bytearray(path.read_bytes())
  data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
  path.write_bytes(data)
