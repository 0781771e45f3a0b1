"""Functions run in a process of their own, for what strangers wrote.

The process has nothing of the user's: no folders, no environment, no file that
it may write. What a function needs it imports itself.
"""

from collections.abc import Callable, Mapping, Sequence
import importlib.util
import inspect
import os
import pathlib
import subprocess
import sys

# What the interpreter itself may need; nothing that is secret.
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
    functions: whose source it gets, and that of `limit`; nothing beside them.
    call: the expression that it evaluates.
    content: its standard input.
    seconds: of wall clock, the interpreter's start included.
    variables: of its environment.

  Raises:
    subprocess.TimeoutExpired: it took longer, and was killed.
    OSError: it can't be started.
  """
  code = '\n'.join(map(inspect.getsource, (limit, *functions)))
  kept = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
  return subprocess.run(
    # Neither the user's folders nor the current one nor any `.pth` file.
    [sys.executable, '-I', '-S', '-c', f'{code}\n{call}\n'],
    input=content,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    timeout=seconds,
    env={**kept, **(variables or {})},
    check=False,
  )


def folders_of(*packages: str) -> list[str]:
  """Where packages are, wherever this interpreter finds them."""
  specs = map(importlib.util.find_spec, packages)
  return sorted({str(pathlib.Path(spec.origin).parents[1]) for spec in specs})


def limit(memory, seconds):
  """Limits the process that calls it: bytes, seconds, no files."""
  import contextlib
  import math
  import resource

  limits = (
    (resource.RLIMIT_AS, memory),
    # In case the parent dies before it can end this process.
    (resource.RLIMIT_CPU, math.ceil(seconds)),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_CORE, 0),
  )
  for kind, amount in limits:
    # There may be a lower limit, and macOS has none of memory.
    with contextlib.suppress(ValueError, OSError):
      resource.setrlimit(kind, (amount, amount))
