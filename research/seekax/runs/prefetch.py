"""The next batch is made and put on the devices while a step runs."""

from collections.abc import Callable, Iterable
import concurrent.futures
import dataclasses
import itertools
import time
from typing import Any

from seekax.data.pipeline import (
  Batch,
  BatchIterator,
  micro_batches,
  Position,
  Records,
)


@dataclasses.dataclass(frozen=True)
class _Made:
  """A batch that is ready, and the state of its source after it was made."""

  batch: Batch | list[Batch] | None
  position: Position
  records: Records
  skipped: int


class Prefetcher:
  """Reads one batch ahead, in a thread of its own.

  Its position is that of the last batch handed out, not of the last one read,
  so that a run that goes on from there misses no batch. An exception of the
  source is raised when its batch is asked for.
  """

  def __init__(
    self,
    source: BatchIterator,
    place: Callable[[Batch], Batch],
    count: int,
    sizes: Iterable[int] = (),
    parts: Iterable[int] = (),
  ):
    """Begins to make the first batch at once.

    Args:
      source: source of the batches; only this object may use it until `close`.
      place: puts a batch on the devices; it is called in the thread.
      count: number of batches that will be asked for; no more are read.
      sizes: number of rows from each data shard, for each coming batch; () for
        the number in the config.
      parts: number of micro-batches of each coming batch. If given, a list of
        micro-batches is handed out instead of a batch.
    """
    self._source, self._place = source, place
    self._left = count
    self._sizes = iter(sizes) if sizes else itertools.repeat(0)
    self._parts = iter(parts) if parts else itertools.repeat(0)
    self._waited = 0.0
    self._last = _Made(
      None, source.get_state(), source.records(), source.skipped()
    )
    self._thread = concurrent.futures.ThreadPoolExecutor(
      max_workers=1, thread_name_prefix='prefetch'
    )
    self._next: concurrent.futures.Future[_Made] | None = None
    self._start_next()

  def _start_next(self) -> None:
    if self._left > 0:
      self._next = self._thread.submit(self._make)

  def _make(self) -> _Made:
    size, parts = next(self._sizes), next(self._parts)
    batch = self._source.take(size) if size else next(self._source)
    return _Made(
      [self._place(part) for part in micro_batches(batch, parts)]
      if parts
      else self._place(batch),
      self._source.get_state(),
      self._source.records(),
      self._source.skipped(),
    )

  def __iter__(self) -> 'Prefetcher':
    return self

  # A batch, or its micro-batches if their numbers were given.
  def __next__(self) -> Any:
    if self._left <= 0 or self._next is None:
      raise StopIteration
    start = time.perf_counter()
    try:
      self._last = self._next.result()
    finally:
      self._waited += time.perf_counter() - start
    self._left -= 1
    self._start_next()
    return self._last.batch

  def get_state(self) -> Position:
    """Position after the batches handed out so far, as the source gives it."""
    return self._last.position

  def records(self) -> Records:
    """Which documents the batch last handed out is made of."""
    return self._last.records

  def skipped(self) -> int:
    """Corrupt records passed over up to the batch last handed out."""
    return self._last.skipped

  def waited(self) -> float:
    """Total time that `next` has waited for data, in seconds."""
    return self._waited

  def close(self) -> None:
    """Ends the thread, after the batch that it is making."""
    self._thread.shutdown(wait=True, cancel_futures=True)
