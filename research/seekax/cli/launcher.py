"""Reads flags and launchers for a run of several processes, without JAX."""

from collections.abc import Mapping
import dataclasses
import os
import sys

from absl import flags

from seekax.configuration.errors import InputError

# Set by launchers that JAX doesn't know, for example in a Kubernetes JobSet.
COORDINATOR = 'SEEKAX_COORDINATOR'
NUM_PROCESSES = 'SEEKAX_NUM_PROCESSES'
PROCESS_ID = 'SEEKAX_PROCESS_ID'


@dataclasses.dataclass(frozen=True)
class _Launcher:
  """A launcher through which JAX itself finds the other processes.

  Attributes:
    tasks: the variable with the number of tasks.
    started: a variable that only the launcher's own processes have. A batch
      script and an allocation's shell have the number of tasks, too.
    advice: the command that starts all tasks.
  """

  tasks: str
  started: str
  advice: str


_LAUNCHERS = {
  'Slurm': _Launcher('SLURM_NTASKS', 'SLURM_STEP_NODELIST', 'srun seekax ...'),
  'Open MPI': _Launcher(
    'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_SIZE', 'mpirun seekax ...'
  ),
}


@dataclasses.dataclass(frozen=True)
class Processes:
  """How this process joins a run.

  Attributes:
    coordinator: host:port of process 0; '' to let JAX ask the launcher.
    count: number of processes; 0 to let JAX ask.
    index: number of this process; -1 to let JAX ask.
  """

  coordinator: str = ''
  count: int = 0
  index: int = -1


def described(
  coordinator: str,
  count: int,
  index: int,
  environment: Mapping[str, str] = os.environ,
) -> Processes | None:
  """Reads how to join a run from flags, or else from the environment.

  Args:
    coordinator: value of the flag, '' if not given.
    count: value of the flag, 0 if not given.
    index: value of the flag, -1 if not given.
    environment: environment variables.

  Returns:
    How to join, or None for a run of one process.

  Raises:
    InputError: a part is missing or impossible.
  """
  coordinator = coordinator or environment.get(COORDINATOR, '')
  count = count or _number(environment, NUM_PROCESSES, 0)
  index = index if index >= 0 else _number(environment, PROCESS_ID, -1)
  if count == 1 and not coordinator and index <= 0:
    return None
  if coordinator or count or index >= 0:
    if not coordinator or count < 1 or not 0 <= index < count:
      raise InputError(
        f'--coordinator={coordinator or "?"} --num_processes={count or "?"} '
        f'--process_id={index if index >= 0 else "?"}: give all three, '
        'host:port of process 0, how many there are, and which this is, from 0'
      )
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
      raise InputError(
        f'--coordinator={coordinator} is no host:port of process 0, with a '
        'port from 1 to 65535'
      )
    return Processes(coordinator, count, index) if count > 1 else None
  for name, launcher in _LAUNCHERS.items():
    tasks = _number(environment, launcher.tasks, 1)
    if tasks > 1 and environment.get(launcher.started):
      return Processes()
    if tasks > 1:
      print(
        f'{name} has room for {tasks} tasks and did not start this process: it '
        f'trains alone; {launcher.advice} starts all of them, '
        '--num_processes=1 omits this line',
        file=sys.stderr,
      )
  return None


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
  text = environment.get(name, '')
  if not text:
    return default
  if not text.isdecimal():
    raise InputError(f'the environment says {name}={text!r}, not a number')
  return int(text)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of a run of several processes."""
  define = {'flag_values': values}
  flags.DEFINE_string(
    'coordinator',
    '',
    'host:port of process 0, for a run of several processes; Slurm and Open '
    'MPI are asked if it is left out',
    **define,
  )
  flags.DEFINE_integer(
    'num_processes', 0, 'number of processes of the run', **define
  )
  flags.DEFINE_integer(
    'process_id', -1, 'number of this process, from 0', **define
  )
  flags.DEFINE_integer(
    'start_timeout',
    300,
    'seconds to wait for the other processes',
    lower_bound=1,
    **define,
  )
