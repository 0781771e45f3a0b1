"""Checkpoints are written and hashed in a thread, while training goes on."""

import concurrent.futures
import dataclasses
import pathlib

import jax
import numpy as np

from seekax.arrays import PyTree
from seekax.data.pipeline import merge_states
from seekax.files import JsonObject
from seekax.machine import processes
from seekax.runs.journal import Progress
from seekax.runs.prefetch import Prefetcher
from seekax.storage import checkpoint
from seekax.training.averaging import Average
from seekax.training.state import to_parts, TrainState
from seekax.training.step import Metrics


class Saver:
  """Saves one state at a time, from a copy in host memory.

  An error of a save is raised by the next call of any method.
  """

  def __init__(self, folder: pathlib.Path, keep: int):
    """Makes a saver; nothing is written yet.

    Args:
      folder: folder of the workdir's checkpoints.
      keep: number of proven steps that are kept.
    """
    self._folder, self._keep = folder, keep
    self._thread = concurrent.futures.ThreadPoolExecutor(
      max_workers=1, thread_name_prefix='save'
    )
    self._running = None

  def start(
    self, step: int, parts: dict[str, PyTree], progress: JsonObject
  ) -> None:
    """Copies a state and begins to save it, once the save before is done.

    A state that is spread over several processes can't be copied by one of
    them: it is saved before this returns.

    Args:
      step: step of the state; a checkpoint that is proven is left as it is.
      parts: see checkpoint.save.
      progress: see checkpoint.save.
    """
    self.wait()
    if step in checkpoint.proven_steps(self._folder):
      return
    leaves = jax.tree.leaves(parts)
    whole = all(getattr(x, 'is_fully_addressable', True) for x in leaves)
    if whole:
      parts = jax.tree.map(lambda x: np.array(x, copy=True), parts)
    self._running = self._thread.submit(self._save, step, parts, progress)
    if not whole:
      self.wait()

  def _save(self, step, parts, progress) -> None:
    checkpoint.save(self._folder, step, parts, progress)
    if processes.is_first():
      checkpoint.clean(self._folder, self._keep)

  def check(self) -> None:
    """Raises StorageError if a save has failed."""
    if self._running is not None and self._running.done():
      self.wait()

  def wait(self) -> None:
    """Returns when nothing is being saved; raises StorageError if it failed."""
    running, self._running = self._running, None
    if running is not None:
      running.result()

  def close(self) -> None:
    """Ends the thread, after the save that runs."""
    self._thread.shutdown(wait=True)


class Keeper:
  """Averages a run's weights, and saves its state and place in the data."""

  def __init__(
    self,
    folder: pathlib.Path,
    keep: int,
    batches: Prefetcher,
    progress: Progress,
    average: Average | None,
  ):
    """Makes a keeper; nothing is written yet.

    Args:
      folder: folder of the workdir's checkpoints.
      keep: number of proven steps that are kept.
      batches: the run's batches, which know their position.
      progress: what is saved beside the state.
      average: averaged weights; None if the run has none.
    """
    self._saver = Saver(folder, keep)
    self._batches, self._progress, self._average = batches, progress, average

  def average_in(self, step: int, state: TrainState, metrics: Metrics) -> None:
    """Adds the weights to their average, if it is due and they have changed."""
    if self._average and self._average.is_due(step) and metrics.taken:
      self._average.update(state)

  def save(self, state: TrainState) -> None:
    """Begins to save; see Saver.start."""
    progress = self._progress
    progress.data = merge_states(processes.gather(self._batches.get_state()))
    averaged = None
    if self._average:
      averaged = self._average.weights
      progress.ema_updates = self._average.updates
    self._saver.start(
      int(state.step),
      to_parts(state, averaged),
      dataclasses.asdict(progress),
    )

  def check(self) -> None:
    """Raises StorageError if a save has failed."""
    self._saver.check()

  def wait(self) -> None:
    """Returns when nothing is being saved; raises StorageError if it failed."""
    self._saver.wait()

  def close(self) -> None:
    """Ends the thread that saves, after the save that runs."""
    self._saver.close()
