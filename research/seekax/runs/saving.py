"""Checkpoints are written and hashed in a thread, while training goes on."""

import concurrent.futures
import pathlib
from typing import Any

import jax
import numpy as np

from seekax.machine import processes
from seekax.storage import checkpoint


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
    self, step: int, parts: dict[str, Any], progress: dict[str, Any]
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
