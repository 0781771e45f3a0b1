"""The loop of every kind of training: steps, metrics, evaluation, checkpoints.

The batches, the step, and what is written of both come in as arguments;
`pretraining` is the first user.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from seekax.configuration.config import Config
from seekax.data.pipeline import Records
from seekax.machine import host_memory, processes
from seekax.runs.journal import Journal
from seekax.runs.prefetch import Prefetcher
from seekax.runs.profile import StepProfiler
from seekax.runs.replay import step_twice
from seekax.runs.saving import Keeper
from seekax.training.schedules import Rates, Schedule
from seekax.training.state import TrainState
from seekax.training.step import Metrics


class Step(Protocol):
  """A step of training; it may take the memory of the state."""

  def __call__(
    self, state: TrainState, batch: Any, rates: Rates
  ) -> tuple[TrainState, Metrics]: ...


def run(
  config: Config,
  state: TrainState,
  batches: Prefetcher,
  step: Step,
  journal: Journal,
  keeper: Keeper,
  profiler: StepProfiler,
  should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:
  """Trains to the last step, or until it is asked to stop, and saves.

  Args:
    config: gives the number of steps, and when to evaluate, sample and save.
    state: the state to go on from.
    batches: one batch for every step that is left.
    step: computes a step.
    journal: writes metrics, evaluates and samples.
    keeper: averages the weights and saves the state.
    profiler: traces some of the steps.
    should_stop: asked before every step.

  Returns:
    The last state, which is saved.

  Raises:
    NonFiniteError: the loss is no number; nothing was saved since it was.
    ReplayError: a step computed twice gave two results; nothing was saved.
    StorageError: a checkpoint can't be saved.
  """
  start = number = int(state.step)
  schedule, waiting = Schedule(config), _Waiting(journal, first=start + 1)
  while number < config.train.steps and not processes.any_of(should_stop()):
    batch, rates = next(batches), schedule.rates(number)
    keeper.check()
    number += 1
    with jax.profiler.StepTraceAnnotation('train', step_num=number):
      if _is_due(config.train.replay_every, number):
        state, metrics = step_twice(step, state, batch, rates)
      else:
        state, metrics = step(state, batch, rates)
    if number == start + 1:
      # What it left of memory is in pieces; the second needs one whole.
      host_memory.return_freed_memory()
    keeper.average_in(number, state, metrics)
    waiting.add(number, metrics, batches.records())
    last = number == config.train.steps
    evaluating = last or _is_due(config.eval.every, number)
    sampling = last or _is_due(config.eval.sample_every, number)
    saving = last or _is_due(config.train.checkpoint_every, number)
    traced = profiler.ends_after(number)
    tracing = profiler.begins_after(number) and not last
    if not (evaluating or sampling or saving or traced or tracing):
      continue
    waiting.write()
    if traced:
      profiler.end(state)
    if evaluating:
      journal.evaluate(number, state, last)
    if sampling:
      journal.sample(number, state)
    if saving:
      keeper.save(state)
    if tracing:
      profiler.begin(state)
    journal.restart_clock()
  waiting.write()
  if start < number < config.train.steps:  # It was asked to stop.
    keeper.save(state)
  keeper.wait()
  return state


def _is_due(every: int, number: int) -> bool:
  """Whether something happens after this step; 0 is never."""
  return every > 0 and number % every == 0


class _Waiting:
  """Keeps a step's metrics until the next step runs, so that no device waits.

  A CPU may have computed the step on the thread that asked for it; then nothing
  has to wait.
  """

  def __init__(self, journal: Journal, first: int):
    self._journal, self._first = journal, first
    self._kept: tuple[int, Metrics, Records] | None = None

  def add(self, number: int, metrics: Metrics, records: Records) -> None:
    self.write()
    self._kept = number, metrics, records
    # pyrefly: ignore[missing-attribute]: JAX declares it on no class.
    if metrics.loss.is_ready():
      self.write()

  def write(self) -> None:
    """Waits for the step whose metrics are kept, if there is one."""
    if self._kept is None:
      return
    number, metrics, records = self._kept
    self._kept = None
    self._journal.step(number, metrics, records, first=number == self._first)
