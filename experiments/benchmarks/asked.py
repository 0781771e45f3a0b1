"""A child process that answers JSON lines; each runs one framework."""

from collections.abc import Sequence
import json
import os
import subprocess
from typing import Any

# Both frameworks get the same allocator: glibc's, in huge pages, which keeps
# what is freed. Both free their temporaries every step, and giving them back to
# the kernel costs page faults.
ALLOCATOR = ':'.join(
  f'glibc.malloc.{option}'
  for option in ('hugetlb=1', 'mmap_max=0', 'trim_threshold=2147483647')
)


class Child:
  """A child that starts with a command and ends with the `with` block."""

  def __init__(self, command: Sequence[str]):
    self._name = command[1]
    process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {'GLIBC_TUNABLES': ALLOCATOR, 'JAX_PLATFORMS': 'cpu'},
    )
    assert process.stdin and process.stdout
    self._process = process
    self._stdin, self._stdout = process.stdin, process.stdout

  @property
  def process(self) -> int:
    """The id of the child's process."""
    return self._process.pid

  def __enter__(self) -> 'Child':
    return self

  def __exit__(self, *unused) -> None:
    self._stdin.close()
    self._stdout.close()
    self._process.wait()

  def ask(self, command: str, **arguments) -> dict[str, Any]:
    """The answer to a command.

    Raises:
      RuntimeError: the child ended instead; its stderr says why.
    """
    try:
      line = json.dumps({'do': command, **arguments})
      self._stdin.write(line + '\n')
      self._stdin.flush()
      answer = self._stdout.readline()
    except BrokenPipeError:
      answer = ''
    if not answer:
      raise RuntimeError(f'{self._name} ended when asked to {command}')
    return json.loads(answer)
