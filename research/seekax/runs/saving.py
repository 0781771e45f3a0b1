"""Checkpoints are written and hashed in a thread, while training goes on."""

import concurrent.futures
import pathlib
from typing import Any

import jax
import numpy as np

from seekax.machine import processes
from seekax.storage import checkpoint


class Saver:
  """One save at a time, of a copy in host memory.

  What goes wrong in it is raised by the next call of any method.
  """

  def __init__(self, folder: pathlib.Path, keep: int):
    """Nothing is written yet.

    Args:
      folder: the workdir's checkpoints.
      keep: proven steps that stay.
    """
    self._folder, self._keep = folder, keep
    self._thread = concurrent.futures.ThreadPoolExecutor(
      max_workers=1, thread_name_prefix='save'
    )
    self._running = None

  def start(
    self, step: int, parts: dict[str, Any], progress: dict[str, Any]
  ) -> None:
    """Copies a state and begins to save it, after the save before.

    A state that is spread over several processes can't be copied by one of
    them: it is saved before this returns.

    Args:
      step: names the checkpoint; nothing is done for one that is proven.
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
