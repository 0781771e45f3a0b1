"""Commands as processes of their own, or one after the other in one."""

from collections.abc import Callable, Sequence
import json
import pathlib
import re
import select
import signal
import subprocess
import sys
import time

_RUNNER = pathlib.Path(__file__).with_name('runner.py')
# Seconds after which a process counts as hung, on a machine that others use.
_PATIENCE = 300.0


class BrokenPromiseError(AssertionError):
  """What was measured is not what was promised."""


def check(condition: bool, measured: str) -> None:
  """Raises BrokenPromiseError with what was measured instead."""
  if not condition:
    raise BrokenPromiseError(measured)


class Said:
  """What a command wrote to stderr, in a file."""

  def __init__(self, log: pathlib.Path):
    self.log = log

  def said(self) -> str:
    """All of it so far."""
    return self.log.read_text(encoding='utf-8', errors='replace')

  def last_line(self) -> str:
    """The end of it."""
    return (self.said().strip().splitlines() or ['(nothing)'])[-1]


class Running(Said):
  """A command that runs; its stderr can be watched."""

  def __init__(
    self, command: Sequence[str], log: pathlib.Path, env: dict[str, str]
  ):
    super().__init__(log)
    with open(log, 'wb') as stderr:
      self.process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=stderr, env=env
      )

  def step(self) -> int:
    """The last step logged, 0 before the first."""
    found = re.findall(rb'^step +(\d+)/', self.log.read_bytes(), re.MULTILINE)
    return int(found[-1]) if found else 0

  def wait_until(
    self, condition: Callable[[], bool], every: float = 0.01
  ) -> bool:
    """Whether it became true, asked so often, before the process ended."""
    end = time.monotonic() + _PATIENCE
    while not condition():
      if self.process.poll() is not None:
        return False
      check(time.monotonic() < end, f'hung: {self.last_line()}')
      time.sleep(every)
    return True

  def send(self, number: int) -> None:
    """Sends a signal, if there still is somebody."""
    self.process.send_signal(number)

  def end(self) -> int:
    """Waits; returns the exit code, that of a shell for a signal."""
    try:
      code = self.process.wait(_PATIENCE)
    except subprocess.TimeoutExpired as error:
      line = self.last_line()
      self.process.send_signal(signal.SIGABRT)  # Python shows its threads.
      self.process.wait()
      raise BrokenPromiseError(f'hung: {line}\n{self.said()}') from error
    return code if code >= 0 else 128 - code


class Runner:
  """A process that runs one command after the other, see runner.py."""

  def __init__(self, env: dict[str, str]):
    self._process = subprocess.Popen(
      [sys.executable, str(_RUNNER)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=env,
    )
    assert self._process.stdin is not None
    assert self._process.stdout is not None
    self._asked, self._answers = self._process.stdin, self._process.stdout

  def run(self, words: Sequence[str], said: Said) -> int:
    """Runs a command to its end; returns its exit code."""
    line = json.dumps([list(words), str(said.log)])
    self._asked.write(line.encode() + b'\n')
    self._asked.flush()
    ready, _, _ = select.select([self._answers], [], [], _PATIENCE)
    answer = self._answers.readline()[:-1] if ready else b''
    if not answer:
      self.close()
      check(False, f'{"died" if ready else "hung"}: {said.last_line()}')
    return int(answer)

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.wait()
    self._asked.close()
    self._answers.close()
