"""Several processes of one run: their identity, and how they agree.

JAX's distributed runtime joins them; everything here also works in the single
process of a laptop, without waiting.
"""

import json
import os
import socket
import threading
from typing import TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from seekax.configuration.errors import InputError

_T = TypeVar('_T')

# A process that is silent for this long counts as lost, and all others end.
HEARTBEAT_SECONDS = 30
_GRACE_SECONDS = 60


def join(
  coordinator: str, count: int, index: int, timeout_seconds: int
) -> None:
  """Waits until all processes of the run have joined.

  If they don't join in time, this process ends with a line and exit code 2; JAX
  itself would end it with a traceback of its own code.

  Args:
    coordinator: host:port of process 0; '' to let JAX ask the launcher.
    count: number of processes; 0 to let JAX ask.
    index: number of this process; -1 to let JAX ask.
    timeout_seconds: how long to wait.

  Raises:
    InputError: the launcher's description can't be used.
  """
  watch = threading.Timer(
    timeout_seconds, _give_up, (coordinator, count, index, timeout_seconds)
  )
  watch.daemon = True
  watch.start()
  try:
    jax.distributed.initialize(
      coordinator or None,
      count or None,
      index if index >= 0 else None,
      initialization_timeout=timeout_seconds + _GRACE_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    first_line = str(error).splitlines()[0]
    raise InputError(
      f'the processes of this run can not meet: {first_line}'
    ) from error
  finally:
    watch.cancel()


def _give_up(coordinator: str, count: int, index: int, seconds: int) -> None:
  """Says which processes are missing, and ends this one."""
  hint = ''
  if not coordinator:
    who = 'not all processes of the launcher came'
  elif index > 0 and not _answers(coordinator):
    who = f'the coordinator {coordinator} can not be reached'
  else:
    who = f'not all of {count} processes came to {coordinator}'
    # JAX doesn't tell which ones they are.
    hint = (
      f'; this is process {index}, and those that print no such line are '
      'missing'
    )
  line = f'seekax: {who} within {seconds} s (--start_timeout){hint}\n'
  os.write(2, line.encode())
  os._exit(2)


def _answers(coordinator: str) -> bool:
  host, port = coordinator.rsplit(':', 1)
  try:
    socket.create_connection((host, int(port)), timeout=2).close()
  except OSError:
    return False
  return True


def is_first() -> bool:
  """Whether this process writes the logs; true if it is the only one."""
  return jax.process_index() == 0


def any_of(flag: bool) -> bool:
  """Whether `flag` is true in any process; all of them must call this."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def wait_for_all(name: str) -> None:
  """Returns once every process has called it."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def gather(value: _T) -> list[_T]:
  """Returns the JSON values of all processes, in order; all must call this."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(text.size))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: text.size] = text
  rows = multihost_utils.process_allgather(padded)
  return [
    json.loads(row[:size].tobytes())
    for row, size in zip(rows, sizes.reshape(-1), strict=True)
  ]


def place(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  """Makes a global array of which each process has its own rows."""
  if jax.process_count() == 1:
    return jax.device_put(array, sharding)
  return jax.make_array_from_process_local_data(sharding, array)
