"""Scripts that need several devices, in processes that have virtual ones."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

_TESTS = pathlib.Path(__file__).parent


def run_script(
  name: str, num_devices: int, *arguments: str, fast: bool = True
) -> Any:
  """Runs a script below tests/; returns the JSON that it prints.

  Args:
    name: of the script, from tests/; it can import what stands there.
    num_devices: of the CPU that it sees.
    *arguments: its words.
    fast: programs are compiled as those of tests are, and not as a run's.
  """
  flags = f'--xla_force_host_platform_device_count={num_devices}'
  if fast:
    flags = f'{os.environ.get("XLA_FLAGS", "")} {flags}'
  path = [str(_TESTS), os.environ.get('PYTHONPATH', '')]
  run = subprocess.run(
    [sys.executable, str(_TESTS / name), *arguments],
    capture_output=True,
    text=True,
    check=False,
    env={
      **os.environ,
      'XLA_FLAGS': flags,
      'PYTHONPATH': os.pathsep.join(filter(None, path)),
    },
  )
  assert run.returncode == 0, run.stderr
  return json.loads(run.stdout)
