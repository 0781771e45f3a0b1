"""Runs functions on untrusted input in a child process.

The process gets nothing of the user's: no folders, no environment, no file that
it may write. A function imports what it needs itself.
"""

from collections.abc import Callable, Mapping, Sequence
import importlib.util
import inspect
import os
import pathlib
import subprocess
import sys

# What the interpreter itself may need; none of it is secret.
_ENVIRONMENT = ('LD_LIBRARY_PATH', 'TZ')


def run(
  functions: Sequence[Callable],
  call: str,
  content: bytes,
  seconds: float,
  variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess:
  """Runs functions in a process that has ended when this returns.

  Args:
    functions: functions whose source the process gets, beside that of `limit`.
    call: the expression that it evaluates.
    content: its standard input.
    seconds: wall-clock limit, with the start of the interpreter.
    variables: added to its environment.

  Raises:
    subprocess.TimeoutExpired: it took longer, and was killed.
    OSError: it can't be started.
  """
  code = '\n'.join(map(inspect.getsource, (limit, *functions)))
  kept = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
  return subprocess.run(
    # Without the user's folders, the current folder and `.pth` files.
    [sys.executable, '-I', '-S', '-c', f'{code}\n{call}\n'],
    input=content,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    timeout=seconds,
    env={**kept, **(variables or {})},
    check=False,
  )


def folders_of(*packages: str) -> list[str]:
  """The folders in which this interpreter finds packages."""
  specs = map(importlib.util.find_spec, packages)
  origins = (spec.origin for spec in specs if spec and spec.origin)
  return sorted({str(pathlib.Path(origin).parents[1]) for origin in origins})


def limit(memory, seconds):
  """Limits the calling process to so much memory and time, and to no files."""
  import contextlib
  import math
  import resource

  limits = (
    (resource.RLIMIT_AS, memory),
    # If the parent dies, nothing else ends this process.
    (resource.RLIMIT_CPU, math.ceil(seconds)),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_CORE, 0),
  )
  for kind, amount in limits:
    # A lower limit may be set already, and macOS has none for memory.
    with contextlib.suppress(ValueError, OSError):
      resource.setrlimit(kind, (amount, amount))
