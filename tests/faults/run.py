"""Injects every fault into short runs and says which promises were kept.

python tests/faults/run.py [--only=F4,F9]

The last line is `N faults, N promises kept`; the exit code is 1 if the two
differ. What can't be injected on this machine is named, and counted as neither.
"""

from collections.abc import Sequence
import concurrent.futures
import pathlib
import sys
import tempfile
import time
import traceback

from absl import app, flags, logging
import bad_numbers
from commands import BrokenPromiseError
import damage
import fuzz
from harness import Bench, Fault, NotRunError
import killing
import refusals
import several

_ONLY = flags.DEFINE_list('only', [], 'numbers of the faults to inject')
_JOBS = flags.DEFINE_integer('jobs', 2, 'faults at a time')

FAULTS = (
  *killing.FAULTS,
  *damage.FAULTS,
  *bad_numbers.FAULTS,
  *refusals.FAULTS,
  *fuzz.FAULTS,
  *several.FAULTS,
)
KEPT, BROKEN, NOT_RUN = 'kept', 'BROKEN', 'not run'


def inject(fault: Fault, bench: Bench) -> tuple[str, str, float]:
  """Returns (verdict, what was measured, seconds)."""
  start = time.monotonic()
  try:
    verdict, measured = KEPT, fault.inject(bench)
  except BrokenPromiseError as error:
    verdict, measured = BROKEN, str(error)
  except NotRunError as error:
    verdict, measured = NOT_RUN, str(error)
  except Exception as error:  # Else one row would cost all the others.
    traceback.print_exc()
    verdict, measured = BROKEN, f'{type(error).__name__}: {error}'
  return verdict, measured, time.monotonic() - start


def inject_all(
  faults: Sequence[Fault], root: pathlib.Path, jobs: int
) -> list[str]:
  """Prints a row for each fault and the sums; returns the verdicts."""
  logging.set_verbosity(logging.WARNING)
  out = sys.stdout  # Commands asked in other threads redirect it meanwhile.
  bench = Bench(root)
  verdicts = []
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    found = [pool.submit(inject, fault, bench) for fault in faults]
    for fault, future in zip(faults, found, strict=True):
      verdict, measured, seconds = future.result()
      verdicts.append(verdict)
      print(
        f'{fault.number:<10}{verdict:<8}{seconds:5.0f} s  {fault.what}',
        file=out,
      )
      print(f'{"":26}promise: {fault.promise}', file=out)
      print(f'{"":26}measured: {measured}', file=out, flush=True)
  bench.close()
  injected = len(verdicts) - verdicts.count(NOT_RUN)
  if injected < len(verdicts):
    names = [
      fault.number
      for fault, verdict in zip(faults, verdicts, strict=True)
      if verdict == NOT_RUN
    ]
    print(f'not run on this machine: {", ".join(names)}', file=out)
  print(f'{injected} faults, {verdicts.count(KEPT)} promises kept', file=out)
  return verdicts


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1]!r} is no flag')
  known = [fault.number for fault in FAULTS]
  unknown = set(_ONLY.value) - set(known)
  if unknown:
    raise app.UsageError(f'--only={unknown}: known are {", ".join(known)}')
  chosen = [f for f in FAULTS if not _ONLY.value or f.number in _ONLY.value]
  with tempfile.TemporaryDirectory(prefix='seekax-faults-') as root:
    verdicts = inject_all(chosen, pathlib.Path(root), _JOBS.value)
  sys.exit(int(BROKEN in verdicts))


if __name__ == '__main__':
  app.run(main)
