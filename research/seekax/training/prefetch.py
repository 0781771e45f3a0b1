"""The next batch is made and put on the devices while a step runs."""

from collections.abc import Callable
import concurrent.futures
from typing import Any

from seekax.data.pipeline import Batch, BatchIterator


class Prefetcher:
  """Reads one batch ahead, in a thread of its own.

  Its position is that of the last batch handed out, whatever was read beyond
  it, so that a run that goes on from there misses none. What the source raises
  is raised where the batch in question is asked for.
  """

  def __init__(
    self, source: BatchIterator, place: Callable[[Batch], Batch], count: int
  ):
    """Starts with the first batch at once.

    Args:
      source: nobody else may use it until `close`.
      place: puts a batch on the devices; called in the thread.
      count: batches that will be wanted; none is read beyond them.
    """
    self._source, self._place = source, place
    self._left = count
    self._position = source.get_state()
    self._thread = concurrent.futures.ThreadPoolExecutor(
      max_workers=1, thread_name_prefix='prefetch'
    )
    self._next = None
    self._start_next()

  def _start_next(self) -> None:
    if self._left > 0:
      self._next = self._thread.submit(self._make)

  def _make(self) -> tuple[Batch, dict[str, Any]]:
    batch = self._place(next(self._source))
    return batch, self._source.get_state()

  def __iter__(self) -> 'Prefetcher':
    return self

  def __next__(self) -> Batch:
    if self._left <= 0:
      raise StopIteration
    batch, self._position = self._next.result()
    self._left -= 1
    self._start_next()
    return batch

  def get_state(self) -> dict[str, Any]:
    """Position after the batches handed out so far, as the source gives it."""
    return self._position

  def close(self) -> None:
    """Ends the thread, after the batch that it is making."""
    self._thread.shutdown(wait=True, cancel_futures=True)
