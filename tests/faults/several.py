"""Runs of several processes, which stop, die and go on as others."""

import json
import os
import pathlib
import signal
import socket
import time

from commands import check, Running
from harness import Bench, Fault, steps_of
import jax
import numpy as np

from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib
from seekax.storage.open import find, open_checkpoint

_MESH = 'data:2,expert:2'
_EMA = '--config.optim.ema_decay=0.9'
_STEPS = 30
# One that is left must notice within this, and end.
_NOTICED_SECONDS = 90


def _start(
  bench: Bench,
  workdir: pathlib.Path,
  processes: int,
  *more: str,
) -> list[Running]:
  """A run on four devices, of so many processes."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  devices = f'--xla_force_host_platform_device_count={4 // processes}'
  flags = os.environ.get('XLA_FLAGS', '')
  words = bench.train(
    workdir,
    f'--config.train.steps={_STEPS}',
    f'--config.parallel.mesh={_MESH}',
    _EMA,
    '--config.model.mtp_depth=0',
    '--config.data.num_shards=4',
    f'--num_processes={processes}',
    f'--coordinator=127.0.0.1:{port}',
    *more,
  )
  return [
    bench.start(
      [*words, f'--process_id={index}'], XLA_FLAGS=f'{flags} {devices}'.strip()
    )
    for index in range(processes)
  ]


def _wait_for_checkpoint(workdir: pathlib.Path, running: Running) -> None:
  there = running.wait_until(
    lambda: (
      bool(steps_of(workdir)) and running.step() > steps_of(workdir)[-1] + 1
    )
  )
  check(there, f'it ended before: {running.last_line()}')


def terminate_one(bench: Bench) -> str:
  workdir = bench.folder('one-of-two')
  first, second = _start(
    bench,
    workdir,
    2,
    '--config.parallel.mesh=pipeline:2,expert:2',
    '--config.model.num_layers=4',
  )
  _wait_for_checkpoint(workdir, first)
  second.send(signal.SIGTERM)
  codes = [first.end(), second.end()]
  check(codes == [143, 143], f'exits {codes}: {first.last_line()}')
  folder, last = workdir / workdir_lib.CHECKPOINTS, steps_of(workdir)[-1]
  checkpoint.verify(folder, last)
  check(first.step() == last, f'logged {first.step()}, saved {last}')
  check(not checkpoint.unproven_steps(folder), 'a step is unproven')
  return f'both exit 143 at step {last}, which verifies'


def kill_one_and_go_on_as_four(bench: Bench) -> str:
  workdir, whole = bench.folder('killed-one'), bench.folder('one-process')
  first, second = _start(bench, workdir, 2)
  _wait_for_checkpoint(workdir, first)
  second.send(signal.SIGKILL)
  start = time.monotonic()
  check(second.end() == 137, 'the other one had ended before')
  code = first.end()
  noticed = time.monotonic() - start
  check(code != 0, 'the one that was left exits with 0')
  check(noticed < _NOTICED_SECONDS, f'it took {noticed:.0f} s to notice')
  folder, saved = workdir / workdir_lib.CHECKPOINTS, steps_of(workdir)[-1]
  checkpoint.verify(folder, saved)
  four = _start(bench, workdir, 4)
  codes = [running.end() for running in four]
  check(codes == [0, 0, 0, 0], f'exits {codes}: {four[0].last_line()}')
  (alone,) = _start(bench, whole, 1)
  check(alone.end() == 0, alone.last_line())
  ours, right = (
    checkpoint.read_progress(run / workdir_lib.CHECKPOINTS, _STEPS)['data']
    for run in (workdir, whole)
  )
  check(ours == right, 'the data stand elsewhere than in one process')
  worst = max(
    abs(a - b) / b
    for a, b in zip(_losses(workdir), _losses(whole), strict=True)
  )
  check(worst < 1e-2, f'losses differ by {worst:.1e}')
  distance = _distance(workdir, whole)
  check(distance < 1e-2, f'averaged weights differ by {distance:.1e}')
  return (
    f'the other ends with {code} after {noticed:.0f} s; four processes go on '
    f'from step {saved}: data as in one process, losses within '
    f'{worst:.0e}, averaged weights within {distance:.0e}'
  )


def _distance(workdir: pathlib.Path, other: pathlib.Path) -> float:
  """Of the averaged weights of two runs, over their norm."""
  ours, right = (
    jax.tree.leaves(open_checkpoint(find(run, averaged=True)).weights.params)
    for run in (workdir, other)
  )
  apart = sum(
    float(np.square(a - b).sum()) for a, b in zip(ours, right, strict=True)
  )
  return (apart / sum(float(np.square(b).sum()) for b in right)) ** 0.5


def _losses(workdir: pathlib.Path) -> list[float]:
  lines = (workdir / workdir_lib.METRICS).read_text().splitlines()
  rows = map(json.loads, lines)
  return [row['loss'] for row in rows if row['kind'] == 'train']


FAULTS = (
  Fault(
    'F5',
    'SIGTERM to one of two processes',
    'both stop at the same step, with one checkpoint',
    terminate_one,
  ),
  Fault(
    'F23',
    'SIGKILL of one of two processes; four of one device each go on',
    'the other ends in bounded time and not with 0; the older step is whole',
    kill_one_and_go_on_as_four,
  ),
)
