"""Numbers that are none, jump, or depend on the machine."""

import json
import pathlib

from commands import check
from harness import Bench, Fault, state_hash, steps_of
import jax
import numpy as np

from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib
from seekax.training import state as state_lib

_SPIKES = ('--config.train.spike_deviations=20',)
_SPIKES += ('--config.train.spike_window=8',)


def parts_of(workdir: pathlib.Path):
  """The newest state of a run and what is kept beside it."""
  config = workdir_lib.read_config(workdir)
  shapes = state_lib.to_parts(state_lib.abstract_state(config))
  return checkpoint.restore(
    workdir / workdir_lib.CHECKPOINTS, steps_of(workdir)[-1], shapes
  )


def _rows(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def _thrown_away(bench: Bench, fault: str, reason: str, *more: str) -> str:
  """One bad step at a run's very end: its state is that of the step before."""
  last = 20
  before, after = bench.folder('before'), bench.folder('after')
  for workdir in (before, after):
    words = bench.train(workdir, *more)
    # Stopped by its own end: nothing else depends on train.steps.
    words += [
      f'--config.train.steps={last}',
      '--config.train.checkpoint_every=1',
    ]
    words += ['--config.train.keep_checkpoints=3']
    bench.finish(words, fault=f'{fault}:{last}' if workdir == after else '')
  (row,) = _rows(after / workdir_lib.SKIPPED)
  check(row['step'] == last and row['reason'] == reason, f'{row}')
  check(not (before / workdir_lib.SKIPPED).exists(), 'a plain step was skipped')
  config = workdir_lib.read_config(after)
  shapes = state_lib.to_parts(state_lib.abstract_state(config))
  folder = after / workdir_lib.CHECKPOINTS
  old, old_progress = checkpoint.restore(folder, last - 1, shapes)
  new, new_progress = checkpoint.restore(folder, last, shapes)
  changed = _changed(old, new)
  strange = [
    name for name in changed if 'guard' not in name and 'step' not in name
  ]
  check(not strange, f'changed: {strange}')
  check(old_progress['data'] != new_progress['data'], 'the data stood still')
  check(len(row['records']) == 4, f'records of {len(row["records"])} rows')
  sound, _ = parts_of(before)
  check(bool(_changed(sound['weights'], new['weights'])), 'the step was taken')
  first = row['records'][0][0]
  return (
    f'step {last} changed {", ".join(changed)}; its rows begin with {first}'
  )


def _changed(old, new) -> list[str]:
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True
  )
  return [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for (path, one), other in pairs
    if not np.array_equal(one, other)
  ]


def nonfinite(bench: Bench) -> str:
  return _thrown_away(bench, 'nonfinite', 'nonfinite')


def spike(bench: Bench) -> str:
  return _thrown_away(bench, 'spike', 'spike', *_SPIKES)


def nonfinite_for_long(bench: Bench) -> str:
  workdir = bench.folder('nonfinite')
  words = bench.train(workdir)
  line = bench.check_refused(
    words,
    'for 3 steps in a row',
    'the last good checkpoint is step 10',
    code=3,
    fault='nonfinite_from:15',
  )
  skipped = [row['step'] for row in _rows(workdir / workdir_lib.SKIPPED)]
  check(skipped == [15, 16, 17], f'skipped {skipped}')
  check(steps_of(workdir) == [10], f'saved {steps_of(workdir)}')
  bench.finish(words)
  bench.check_like_unbroken(workdir)
  check(
    (workdir / workdir_lib.SKIPPED).read_text() == '', 'rows of steps redone'
  )
  return (
    f'exit 3, {line[line.index("the last good") :][:40]}; then the same hash'
  )


def nonfinite_weights(bench: Bench) -> str:
  source, workdir = bench.folder('nan'), bench.folder('from-nan')
  unbroken = bench.unbroken()
  parts, progress = parts_of(unbroken)
  head = np.array(parts['weights']['params']['head'])
  head[3, 5] = np.nan
  parts['weights']['params']['head'] = head
  checkpoint.save(source / workdir_lib.CHECKPOINTS, 40, parts, progress)
  for name in (workdir_lib.RUN, workdir_lib.TOKENIZER):
    (source / name).write_bytes((unbroken / name).read_bytes())
  words = bench.train(workdir, f'--config.train.init_from={source}')
  line = bench.check_refused(words, 'params/head holds nan at [3, 5]', code=3)
  check(not steps_of(workdir), 'a state that is no number was saved')
  # Where the numbers are lost on the way, nothing is saved either.
  bench.check_refused(
    bench.train(bench.folder('never-finite')),
    'no checkpoint had been saved',
    code=3,
    fault='nonfinite_from:1',
  )
  return f'exit 3, "{line[-60:]}"; and from the first step on'


def clock(bench: Bench) -> str:
  workdir = bench.folder('clock')
  bench.finish(bench.train(workdir), fault='clock:86400')
  bench.check_like_unbroken(workdir)
  summary = json.loads((workdir / workdir_lib.SUMMARY).read_text())
  seconds = summary['train_seconds']
  check(0 < seconds < 300, f'train_seconds is {seconds}')
  return f'same hash; train_seconds {seconds:.2f}'


def other_devices(bench: Bench) -> str:
  workdir = bench.folder('devices')
  words = bench.train(workdir)
  bench.run(words, fault='kill_before_manifest:3')
  check(steps_of(workdir) == [10, 20], f'saved {steps_of(workdir)}')
  bench.finish(
    [*words, '--config.parallel.mesh=data:2'],
    XLA_FLAGS='--xla_force_host_platform_device_count=2',
  )
  _, our_progress = parts_of(workdir)
  _, their_progress = parts_of(bench.unbroken())
  check(our_progress['data'] == their_progress['data'], 'another data position')
  losses = [
    {
      r['step']: r['loss']
      for r in _rows(path / workdir_lib.METRICS)
      if r['kind'] == 'train'
    }
    for path in (workdir, bench.unbroken())
  ]
  check(losses[0].keys() == losses[1].keys(), 'other steps were logged')
  furthest = max(abs(losses[0][k] / losses[1][k] - 1) for k in losses[0])
  check(furthest < 1e-3, f'losses differ by {furthest:.1e}')
  same = state_hash(workdir) == state_hash(bench.unbroken())
  return (
    f'from 1 device to 2 at step 20: same data position, losses within '
    f'{furthest:.1e}, hash {"equal" if same else "differs (sums in parts)"}'
  )


def computes_differently(bench: Bench) -> str:
  workdir = bench.folder('wrong-bit')
  words = bench.train(workdir, '--config.train.replay_every=5')
  line = bench.check_refused(
    words,
    'step 15 computed twice differs in 1 arrays, params/head in 1 values',
    'the last good checkpoint is step 10',
    code=4,
    fault='wrong_once:15',
  )
  check(steps_of(workdir) == [10], f'saved {steps_of(workdir)}')
  # On a machine that computes alike, the same command ends as if nothing was.
  bench.finish(words)
  bench.check_like_unbroken(workdir)
  return line.removeprefix('seekax: ')[:72]


FAULTS = (
  Fault(
    'F22',
    'one wrong bit in the result of one step',
    'a replayed step (train.replay_every) flags it, exit 4, nothing is saved',
    computes_differently,
  ),
  Fault(
    'F19',
    'one step whose gradient is no number',
    "nothing changes but the data's position; its records are named",
    nonfinite,
  ),
  Fault(
    'F19-limit',
    'no gradient is a number any more',
    'exit 3 after train.nonfinite_limit steps, last good checkpoint named',
    nonfinite_for_long,
  ),
  Fault(
    'F19-init',
    'init_from weights with a NaN in them; no gradient from the first step on',
    'refused with its place; exit 3; nothing is saved',
    nonfinite_weights,
  ),
  Fault(
    'F20',
    'one step whose gradient is hundreds of times as large',
    'thrown away as a spike, its records named',
    spike,
  ),
  Fault(
    'F29',
    'a wall clock that jumps a day to and fro, ten times a second',
    'the same hash, sane times',
    clock,
  ),
  Fault(
    'F13',
    'goes on with another number of devices',
    'data order unchanged, losses within 0.1%',
    other_devices,
  ),
)
