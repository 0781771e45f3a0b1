"""`seekax tokenize`: text to a folder of token shards."""

from collections.abc import Sequence
import os
import signal
import sys
import time

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.config import InputError


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  values = flags.FlagValues()
  define = {'flag_values': values}
  flags.DEFINE_string(
    'source',
    '',
    "'stdlib', a text, .jsonl, .jsonl.gz or .parquet file, a folder of these, "
    "or several as 'a,b'",
    **define,
  )
  flags.DEFINE_string(
    'tokenizer', '', 'a tokenizer.json, or a folder that has one', **define
  )
  flags.DEFINE_string('target', '', 'folder to write', **define)
  flags.DEFINE_integer(
    'workers', 0, 'processes; 0: one for each core', **define
  )
  flags.DEFINE_integer(
    'shard_documents', 16384, 'documents in a shard, at most', **define
  )
  flags_lib.parse(
    values,
    argv,
    'tokenize',
    'Writes token shards that data.source takes. The same command again goes '
    'on where it stopped.',
  )
  flags_lib.require(values, 'source', 'tokenizer', 'target')
  if values.workers < 0 or values.shard_documents < 1:
    raise InputError(
      f'--workers={values.workers} must not be negative and '
      f'--shard_documents={values.shard_documents} must be above 0'
    )
  signal.signal(signal.SIGTERM, _terminate)
  # Only now: everything above answers in a fraction of a second.
  from seekax.data import shard_writer

  progress = _ProgressLine()
  try:
    fresh = shard_writer.tokenize(
      values.source,
      values.tokenizer,
      values.target,
      values.workers or len(os.sched_getaffinity(0)),
      values.shard_documents,
      progress.update,
    )
  except KeyboardInterrupt:
    print('stopped; the same command goes on', file=sys.stderr)
    raise
  finally:
    progress.end()
  if not fresh:
    print(f'{values.target} is complete already', file=sys.stderr)
  print(values.target)
  return 0


def _terminate(number: int, frame) -> None:
  del frame
  print('stopped; the same command goes on', file=sys.stderr)
  sys.exit(128 + number)


class _ProgressLine:
  """One line of a terminal, written over and over; nothing in a pipe."""

  def __init__(self):
    self._start = time.monotonic()
    self._shown = False

  def update(self, progress) -> None:
    """Says what is written; speed is that of this command alone."""
    if not sys.stderr.isatty():
      return
    seconds = max(time.monotonic() - self._start, 1e-9)
    print(
      f'\r{progress.shards} shards, {progress.documents:,} documents, '
      f'{progress.bytes / 1e6:,.1f} MB of text, '
      f'{progress.fresh_bytes / seconds / 1e6:.1f} MB/s',
      end='',
      file=sys.stderr,
      flush=True,
    )
    self._shown = True

  def end(self) -> None:
    """Leaves the line."""
    if self._shown:
      print(file=sys.stderr)
