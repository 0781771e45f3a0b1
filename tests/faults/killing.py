"""Processes that are killed, or asked to stop, at any moment."""

import random
import signal
import time

from commands import check
from harness import Bench, Fault, leftovers, state_hash, steps_of
import jax

from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib
from seekax.training import state as state_lib

# Four kills of a step between the 11th and the 20th after a start, and more.
LONG = ('--config.train.steps=120',)
# All that a run keeps beside its weights and its place in the data.
_ALL = ('--config.optim.ema_decay=0.9', '--config.optim.ema_every=3')
_ALL += ('--config.train.micro_batches=2', '--config.train.ramp_tokens=6000')
_ALL += ('--config.train.spike_deviations=1', '--config.train.spike_window=8')


def _kill_at_random(bench: Bench, kills: int, *more: str):
  """A run that is killed so often; returns its workdir and where it was."""
  workdir, draw = bench.folder('killed'), random.Random(kills)
  words = bench.train(workdir, *LONG, *more)
  places = []
  for number in range(kills):
    running = bench.start(words)
    first = (steps_of(workdir) or [0])[-1]
    if number % 4 == 3:  # While it starts; the others while it trains.
      time.sleep(draw.uniform(0, 4))
    else:
      target = first + draw.randint(11, 20)  # Past the next checkpoint.
      running.wait_until(lambda r=running, t=target: r.step() >= t)
      if not number:  # So that at least one checkpoint is gone on from.
        running.wait_until(lambda: bool(steps_of(workdir)))
      time.sleep(draw.uniform(0, 0.05))
    places.append(running.step())
    running.send(signal.SIGKILL)
    code = running.end()
    check(code == 128 + signal.SIGKILL, f'it ended with {code} before the kill')
  check(bool(steps_of(workdir)), 'no life got as far as a checkpoint')
  bench.finish(words)
  bench.check_like_unbroken(workdir, *LONG, *more)
  return workdir, places


def _buffers(workdir, steps) -> list[int]:
  """How many tokens of the document being packed were used, per shard."""
  progress = checkpoint.read_progress(
    workdir / workdir_lib.CHECKPOINTS, steps[-1]
  )
  return [s['offset'] for s in progress['data']['shards'].values()]


def kill_at_random(bench: Bench) -> str:
  workdir, places = _kill_at_random(bench, 5)
  offsets = _buffers(workdir, steps_of(workdir))
  check(any(offsets), f'no packing buffer was in use: {offsets}')
  return f'killed at steps {places}, same hash; packing offsets {offsets}'


def kill_with_all(bench: Bench) -> str:
  workdir, places = _kill_at_random(bench, 3, *_ALL)
  ours = _average_hash(workdir)
  theirs = _average_hash(bench.unbroken(*LONG, *_ALL))
  check(ours == theirs, f'averages {ours[:12]} and {theirs[:12]}')
  skipped = (workdir / workdir_lib.SKIPPED).read_text().count('"spike"')
  check(skipped > 0, 'no step was a spike')
  return f'killed at steps {places}, same hash and averages, {skipped} spikes'


def _average_hash(workdir) -> str:
  config = workdir_lib.read_config(workdir)
  weights = state_lib.abstract_state(config).weights.tree
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, 'float32'), weights
  )
  folder = workdir / workdir_lib.CHECKPOINTS
  ema = checkpoint.restore_some(folder, steps_of(workdir)[-1], 'ema', shapes)
  return checkpoint.state_hash(ema)


def kill_in_a_save(bench: Bench) -> str:
  """The save is found by its folder; each time it is let run a bit longer."""
  workdir = bench.folder('killed')
  words = bench.train(workdir, *LONG)
  folder = workdir / workdir_lib.CHECKPOINTS
  met = []
  for milliseconds in (0, 10, 40):
    before = steps_of(workdir)
    running = bench.start(words)

    def is_saving(known=before):
      if not folder.is_dir():
        return False
      names = {p.name.split('.')[0] for p in folder.iterdir()}
      return any(name.isdigit() and int(name) not in known for name in names)

    running.wait_until(is_saving, every=0.001)
    time.sleep(milliseconds / 1000)
    running.send(signal.SIGKILL)
    running.end()
    check(steps_of(workdir)[: len(before)] == before, 'an older step is gone')
    met.append(len(leftovers(workdir)))
  check(any(met), 'no kill met a save')
  bench.finish(words)
  bench.check_like_unbroken(workdir, *LONG)
  check(not leftovers(workdir), f'left: {leftovers(workdir)}')
  hits = sum(map(bool, met))
  return f'{hits} of {len(met)} kills met a save; same hash, nothing left over'


def kill_before_manifest(bench: Bench) -> str:
  workdir = bench.folder('killed')
  words = bench.train(workdir)
  code, _ = bench.run(words, fault='kill_before_manifest:2')
  check(code == 137, f'exit {code}')
  check(steps_of(workdir) == [10], f'proven: {steps_of(workdir)}')
  folder = workdir / workdir_lib.CHECKPOINTS
  unproven = checkpoint.unproven_steps(folder)
  check(unproven == [20], f'unproven: {unproven}')
  said = bench.finish(words).said()
  check('has no manifest' in said, 'the skipped step is not mentioned')
  bench.check_like_unbroken(workdir)
  check(not leftovers(workdir), f'left: {leftovers(workdir)}')
  return 'step 20 skipped with a line, went on from 10, same hash'


def _stop(bench: Bench, number: int, expected: int) -> str:
  workdir = bench.folder('stopped')
  words = bench.train(workdir)
  running = bench.start(words)
  running.wait_until(lambda: running.step() >= 13)
  running.send(number)
  code = running.end()
  check(code == expected, f'exit {code}: {running.last_line()}')
  check('Traceback' not in running.said(), 'a traceback')
  line = running.last_line()
  check(f'seekax train --workdir={workdir}' in line, line)
  saved = steps_of(workdir)[-1]
  check(13 <= saved < 40, f'saved step {saved}')
  bench.finish(['train', f'--workdir={workdir}'])
  bench.check_like_unbroken(workdir)
  return f'exit {code}, saved step {saved}; the line it printed: same hash'


def terminate(bench: Bench) -> str:
  return _stop(bench, signal.SIGTERM, 143)


def interrupt(bench: Bench) -> str:
  return _stop(bench, signal.SIGINT, 130)


def second_signal(bench: Bench) -> str:
  codes = []
  for first, second in (
    (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGTERM, signal.SIGINT),
  ):
    workdir = bench.folder('stopped')
    words = bench.train(workdir, '--config.train.steps=100000')
    running = bench.start(words, fault='slow_save:2')
    running.wait_until(lambda r=running: r.step() >= 23)
    running.send(first)
    # The loop waits for the save of step 20, then begins the one that is met.
    folder = workdir / workdir_lib.CHECKPOINTS
    running.wait_until(
      lambda f=folder: any(s > 20 for s in checkpoint.unproven_steps(f))
    )
    before = steps_of(workdir)
    running.send(second)
    codes.append(running.end())
    check(codes[-1] == 128 + second, f'exit {codes[-1]}')
    check(before and steps_of(workdir) == before, 'the older step is hurt')
    checkpoint.verify(folder, before[-1])
    running = bench.start(words)
    running.wait_until(lambda r=running, s=before[-1]: r.step() >= s + 3)
    running.send(signal.SIGTERM)
    check(running.end() == 143, f'exit {running.last_line()}')
    check(state_hash(workdir) != '', 'no hash')
  return f'exit {codes}; the older step verifies and is gone on from'


FAULTS = (
  Fault(
    'F24',
    'SIGKILL at 5 random moments (start-up, steps); mixed sources, packing',
    'the same hash as an unbroken run',
    kill_at_random,
  ),
  Fault(
    'F1',
    'SIGKILL at 3 random moments; averaged weights, micro-batches, a batch '
    'ramp and spikes thrown away at once',
    'the same hash and the same averages',
    kill_with_all,
  ),
  Fault(
    'F2',
    'SIGKILL inside a save, after 0, 10 and 40 ms',
    'the step before loads, leftovers are cleaned, same hash',
    kill_in_a_save,
  ),
  Fault(
    'F3',
    'SIGKILL after the commit, before the manifest',
    'the step counts as unfinished, is skipped and saved again',
    kill_before_manifest,
  ),
  Fault(
    'F4',
    'SIGTERM in mid-run',
    'saved, exit 143, goes on bit-equal',
    terminate,
  ),
  Fault(
    'F4-int',
    'Ctrl-C in mid-run',
    'saved, exit 130, goes on bit-equal',
    interrupt,
  ),
  Fault(
    'F6',
    'a second signal during the save, the same one and another',
    'kills at once; the older step is whole',
    second_signal,
  ),
)
