"""Pre-training: a run on plain text, from a checkpoint or from the start."""

from collections.abc import Callable, Sequence
import pathlib

import jax

from seekax.configuration.config import Config
from seekax.data.pipeline import Batch
from seekax.machine import processes
from seekax.model.weights import Weights
from seekax.parallel import mesh as mesh_lib
from seekax.parallel import rules
from seekax.report import run as report
from seekax.runs import loop
from seekax.runs.corpus import Corpus
from seekax.runs.journal import Journal, Progress
from seekax.runs.metrics import MetricsWriter, router_names, Silence
from seekax.runs.origin import Beginning
from seekax.runs.prefetch import Prefetcher
from seekax.runs.profile import StepProfiler
from seekax.runs.saving import Keeper
from seekax.storage import checkpoint
from seekax.storage import open as open_lib
from seekax.storage import workdir as workdir_lib
from seekax.training import placement
from seekax.training.averaging import Average
from seekax.training.schedules import Rates, Schedule
from seekax.training.state import (
  abstract_state,
  from_parts,
  init_state_on,
  start_from,
  to_parts,
  TrainState,
)
from seekax.training.step import compile_ahead, Metrics, train_step


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
    should_stop: asked before every step; true saves and returns.

  Returns:
    Whether the last step was reached.

  Raises:
    NonFiniteError: see loop.run; likewise ReplayError.
    StorageError: a checkpoint can't be restored or saved.
  """
  mesh = mesh_lib.mesh_of(config)
  # 'highest' keeps float32 products float32 on GPUs, where the default rounds.
  with jax.set_mesh(mesh), jax.default_matmul_precision('highest'):
    state, average, progress = _restore_or_start(
      config, workdir, corpus, mesh, beginning
    )
    start = int(state.step)
    writer = (
      MetricsWriter(
        workdir, start, config.train.steps, router_names(config.model)
      )
      if processes.is_first()
      else Silence()
    )
    _say_what_changes(writer, workdir, start, mesh, progress, beginning)
    progress.mesh = mesh_lib.describe(mesh)
    profiler = StepProfiler(
      config.train.profile_steps, workdir, start, writer.say
    )
    batches = _batches(config, corpus, mesh, start)
    journal = Journal(config, corpus, writer, progress, batches)
    keeper = Keeper(
      workdir / workdir_lib.CHECKPOINTS,
      config.train.keep_checkpoints,
      batches,
      progress,
      average,
    )
    try:
      state = loop.run(
        config,
        state,
        batches,
        _step(config),
        journal,
        keeper,
        profiler,
        should_stop,
      )
    finally:
      batches.close()
      keeper.close()
      profiler.end()
      writer.close()
  reached = int(state.step)
  if reached and processes.is_first():
    report.write(workdir)
  return reached == config.train.steps


def _step(config: Config) -> loop.Step:
  """The step of pre-training; its first call compiles what all steps need."""
  compiled = False

  def step(
    state: TrainState, batch: Sequence[Batch], rates: Rates
  ) -> tuple[TrainState, Metrics]:
    nonlocal compiled
    if not compiled:
      compile_ahead(config, state, batch, rates)
      compiled = True
    return train_step(config, state, batch, rates)

  return step


def _batches(
  config: Config, corpus: Corpus, mesh: jax.sharding.Mesh, start: int
) -> Prefetcher:
  """The batches of the steps to come, on the devices of the mesh."""
  sharding = rules.sharding(mesh, ('batch', 'length'))
  schedule, coming = Schedule(config), range(start, config.train.steps)
  return Prefetcher(
    corpus.batches,
    lambda batch: jax.tree.map(lambda x: processes.place(x, sharding), batch),
    count=len(coming),
    sizes=(schedule.batch_rows(k) // config.data.num_shards for k in coming),
    parts=(schedule.micro_batches(k) for k in coming),
  )


def _say_what_changes(
  writer: MetricsWriter | Silence,
  workdir: pathlib.Path,
  step: int,
  mesh: jax.sharding.Mesh,
  progress: Progress,
  beginning: Beginning,
) -> None:
  """Says that a run goes on elsewhere, or from an older step."""
  if progress.mesh not in ('', mesh_lib.describe(mesh)):
    writer.say(
      f'step {step} was saved on the mesh {progress.mesh}; its arrays are '
      f'laid out anew over {mesh_lib.describe(mesh)}'
    )
  if beginning.sets_aside:
    later = []
    if processes.is_first():
      later = checkpoint.set_aside(workdir / workdir_lib.CHECKPOINTS, step)
    writer.say(f'going on from step {step}, not from {later}')


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
