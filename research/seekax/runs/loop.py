"""The training loop: mesh, data, state, restore, steps, log, save, report."""

from collections.abc import Callable
import dataclasses
import pathlib

import jax

from seekax.configuration.config import Config
from seekax.data.pipeline import merge_states
from seekax.machine import host_memory, processes
from seekax.model.weights import Weights
from seekax.parallel import mesh as mesh_lib
from seekax.parallel import rules
from seekax.report import run as report
from seekax.runs.corpus import Corpus
from seekax.runs.journal import Journal, Progress
from seekax.runs.metrics import MetricsWriter, router_names, Silence
from seekax.runs.origin import Beginning
from seekax.runs.prefetch import Prefetcher
from seekax.runs.profile import StepProfiler
from seekax.runs.replay import step_twice
from seekax.runs.saving import Saver
from seekax.storage import checkpoint
from seekax.storage import open as open_lib
from seekax.storage import workdir as workdir_lib
from seekax.training import placement
from seekax.training.averaging import Average
from seekax.training.schedules import Schedule
from seekax.training.state import (
  abstract_state,
  from_parts,
  init_state_on,
  start_from,
  to_parts,
  TrainState,
)
from seekax.training.step import compile_ahead, train_step


def train(
  config: Config,
  workdir: pathlib.Path,
  corpus: Corpus,
  beginning: Beginning,
  should_stop: Callable[[], bool] = lambda: False,
) -> bool:
  """Trains from a checkpoint or from the start to the last step.

  Args:
    config: the run, validated; the same as the workdir's run.json.
    workdir: prepared and locked.
    corpus: the run's text.
    beginning: where the first state comes from.
    should_stop: asked after every step; true saves and returns.

  Returns:
    Whether the last step was reached.

  Raises:
    NonFiniteError: the loss is no number; nothing was saved since it was.
    ReplayError: a step computed twice gave two results; nothing was saved.
    StorageError: a checkpoint can't be restored or saved.
  """
  mesh = mesh_lib.mesh_of(config)
  # 'highest' keeps float32 products float32 on GPUs, where the default rounds.
  with jax.set_mesh(mesh), jax.default_matmul_precision('highest'):
    state, average, progress = _restore_or_start(
      config, workdir, corpus, mesh, beginning
    )
    step, start = int(state.step), int(state.step)
    first = processes.is_first()
    writer = (
      MetricsWriter(
        workdir, step, config.train.steps, router_names(config.model)
      )
      if first
      else Silence()
    )
    if progress.mesh not in ('', mesh_lib.describe(mesh)):
      writer.say(
        f'step {step} was saved on the mesh {progress.mesh}; its arrays are '
        f'laid out anew over {mesh_lib.describe(mesh)}'
      )
    progress.mesh = mesh_lib.describe(mesh)
    if beginning.sets_aside:
      later = []
      if first:
        later = checkpoint.set_aside(workdir / workdir_lib.CHECKPOINTS, step)
      writer.say(f'going on from step {step}, not from {later}')
    schedule = Schedule(config)
    profiler = StepProfiler(
      config.train.profile_steps, workdir, start, writer.say
    )
    sharding = rules.sharding(mesh, ('batch', 'length'))
    coming = range(step, config.train.steps)
    batches = Prefetcher(
      corpus.batches,
      lambda batch: jax.tree.map(lambda x: processes.place(x, sharding), batch),
      count=len(coming),
      sizes=(schedule.batch_rows(k) // config.data.num_shards for k in coming),
      parts=(schedule.micro_batches(k) for k in coming),
    )
    journal = Journal(config, corpus, writer, progress, schedule, batches)
    saver = Saver(
      workdir / workdir_lib.CHECKPOINTS, config.train.keep_checkpoints
    )

    def save(state):
      progress.data = merge_states(processes.gather(batches.get_state()))
      averaged = None
      if average:
        averaged, progress.ema_updates = average.weights, average.updates
      saver.start(
        int(state.step),
        to_parts(state, averaged),
        dataclasses.asdict(progress),
      )

    def take(state, batch, rates):
      return train_step(config, state, batch, rates)

    pending = None
    try:
      while step < config.train.steps and not processes.any_of(should_stop()):
        batch, rates = next(batches), schedule.rates(step)
        if step == start:
          compile_ahead(config, state, batch, rates)
        saver.check()
        step += 1
        with jax.profiler.StepTraceAnnotation('train', step_num=step):
          if config.train.replay_every and (
            step % config.train.replay_every == 0
          ):
            state, metrics = step_twice(take, state, batch, rates)
          else:
            state, metrics = take(state, batch, rates)
        if step == start + 1:
          # What it left of memory is in pieces; the second needs one whole.
          host_memory.return_freed_memory()
        if average and average.is_due(step) and metrics.taken:
          average.update(state)
        # A step's metrics are fetched while the next one runs, or now if a CPU
        # has computed it on this very thread.
        if pending is not None:
          journal.step(step - 1, *pending, first=step - 1 == start + 1)
        pending = metrics, batches.records()
        # pyrefly: ignore[missing-attribute]: JAX declares it on no class.
        if metrics.loss.is_ready():
          journal.step(step, *pending, first=step == start + 1)
          pending = None
        last = step == config.train.steps
        evaluating = last or step % config.eval.every == 0
        sampling = last or step % config.eval.sample_every == 0
        saving = last or step % config.train.checkpoint_every == 0
        traced = profiler.ends_after(step)
        tracing = profiler.begins_after(step) and not last
        if not (evaluating or sampling or saving or traced or tracing):
          continue
        if pending is not None:
          journal.step(step, *pending, first=step == start + 1)
          pending = None
        if traced:
          profiler.end(state)
        if evaluating:
          journal.evaluate(step, state, last)
        if sampling:
          journal.sample(step, state)
        if saving:
          save(state)
        if tracing:
          profiler.begin(state)
        journal.restart_clock()
      if pending is not None:
        journal.step(step, *pending, first=step == start + 1)
      if step < config.train.steps and step > start:
        save(state)
      saver.wait()
    finally:
      batches.close()
      saver.close()
      profiler.end()
      writer.close()
  if step and processes.is_first():
    report.write(workdir)
  return step == config.train.steps


def _restore_or_start(
  config: Config,
  workdir: pathlib.Path,
  corpus: Corpus,
  mesh: jax.sharding.Mesh,
  beginning: Beginning,
) -> tuple[TrainState, Average | None, Progress]:
  """The state to go on from, and the data at its position."""
  shardings = placement.state_shardings(config, mesh)
  abstract = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    abstract_state(config),
    shardings,
  )
  if beginning.step is not None:
    averaged = abstract.weights if config.optim.ema_decay else None
    parts, saved = checkpoint.restore(
      workdir / workdir_lib.CHECKPOINTS,
      beginning.step,
      to_parts(abstract, averaged),
    )
    progress, average = Progress(**saved), None
    corpus.batches.set_state(progress.data)
    if averaged:
      average = Average(
        config.optim, Weights(**parts['ema']), progress.ema_updates
      )
    return from_parts(parts), average, progress
  if beginning.origin is None:
    state = init_state_on(config, shardings)
  else:
    opened = open_lib.open_checkpoint(
      beginning.origin, expand_fp8=True, shardings=shardings.weights
    )
    state = start_from(config, opened.weights)
    state = jax.device_put(state, shardings)
  progress = Progress(corpus.batches.get_state(), corpus.fingerprint)
  average = None
  if config.optim.ema_decay:
    average = Average(config.optim, state.weights)
  return state, average, progress
