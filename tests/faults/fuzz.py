"""Hundreds of spoilt files: each ends well, or in one line.

A case is a kind of file and a seed. Cases run in a child process, one after the
other; the parent watches the time, and starts another child if one is killed.

python tests/faults/fuzz.py header:17 config   runs cases again and tells.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time

from commands import check
from harness import Bench, Fault

# How many cases of a kind are tried; the kinds are fuzz_child.py's.
COUNTS = {
  'header': 110,
  'config': 90,
  'index': 60,
  'tokenizer': 50,
  'ids': 40,
  'text': 30,
  'rows': 20,
  'run': 40,
  'state': 50,
  'manifest': 20,
}
_CHILD = pathlib.Path(__file__).with_name('fuzz_child.py')
_PATIENCE = 30.0  # Seconds for a case; the child counts more than 10 as wrong.
_START = 120.0  # Until a child has imported everything and made its files.
Case = tuple[str, int]


def all_cases(part: float = 1.0) -> list[Case]:
  """A part of each kind's cases, mixed."""
  found = [
    (number / count, name, number)
    for name, count in COUNTS.items()
    for number in range(max(int(count * part), 1))
  ]
  return [(name, number) for _, name, number in sorted(found)]


class _Child:
  """A process that runs cases; gone when it takes too long."""

  def __init__(self, root: pathlib.Path):
    env = dict(os.environ, JAX_PLATFORMS='cpu')
    env['PYTHONPATH'] = str(_CHILD.parents[1])
    self.errors = open(root / 'child.log', 'w+b')
    process = subprocess.Popen(
      [sys.executable, str(_CHILD), str(root)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.errors,
      env=env,
    )
    assert process.stdin and process.stdout
    self.process = process
    self.stdin, self.stdout = process.stdin, process.stdout
    self.is_new = True

  def ask(self, case: Case) -> str:
    """What is wrong with the outcome of a case; '' if nothing."""
    self.stdin.write(json.dumps(case).encode() + b'\n')
    self.stdin.flush()
    patience = _START if self.is_new else _PATIENCE
    self.is_new = False
    out = self.stdout
    ready, _, _ = select.select([out], [], [], patience)
    line = out.readline() if ready else b''
    if line:
      return json.loads(line)
    code = self.process.poll() if not ready else self.process.wait()
    self.end()
    return 'hung' if code is None else f'killed: {code}'

  def end(self) -> None:
    """Ends the process."""
    self.process.kill()
    self.process.wait()
    for file in (self.stdin, self.stdout, self.errors):
      file.close()


def run(cases: Sequence[Case], root: pathlib.Path) -> dict[Case, str]:
  """Runs cases; returns those that ended badly, and how."""
  wrong: dict[Case, str] = {}
  child = _Child(root)
  for case in cases:
    if child.process.poll() is not None:
      child = _Child(root)
    found = child.ask(case)
    if found:
      wrong[case] = found
  child.end()
  return wrong


def _fuzz(bench: Bench, part: float) -> str:
  cases = all_cases(part)
  wrong = run(cases, bench.folder('fuzz'))
  first = next(iter(wrong.items()), None)
  check(not wrong, f'{len(wrong)} of {len(cases)} ended badly: {first}')
  return f'{len(cases)} files of {len(COUNTS)} kinds, none ended badly'


FAULTS = (
  Fault(
    'B16',
    'hundreds of files with bits, lengths, fields and kinds of others',
    'each is read, or refused in one line, in seconds and below 1 GiB',
    lambda bench: _fuzz(bench, 1.0),
  ),
  Fault(
    'B16-some',
    'some tens of them',
    'the same',
    lambda bench: _fuzz(bench, 0.08),
    quick=True,
  ),
)


def main(argv: Sequence[str]) -> int:
  """Runs cases again, or all of them; prints what is wrong."""
  cases = []
  for word in argv:
    name, _, number = word.partition(':')
    numbers = [int(number)] if number else range(COUNTS[name])
    cases += [(name, number) for number in numbers]
  cases = cases or all_cases()
  start = time.monotonic()
  with tempfile.TemporaryDirectory(prefix='seekax-fuzz-') as root:
    wrong = run(cases, pathlib.Path(root))
  for case, text in wrong.items():
    print(f'{case[0]}:{case[1]} {text}\n')
  print(
    f'{len(cases)} cases, {len(wrong)} ended badly, '
    f'{time.monotonic() - start:.0f} s'
  )
  return int(bool(wrong))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
