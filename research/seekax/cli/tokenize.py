"""`seekax tokenize`: writes text as a folder of token shards."""

from collections.abc import Sequence
import os
import signal
import sys
import time

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.configuration.data import DataConfig
from seekax.configuration.errors import InputError

_MAX_WORKERS = 1024


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  values = flags.FlagValues()
  define = {'flag_values': values}
  flags.DEFINE_string(
    'source',
    '',
    "'stdlib', a text, JSON lines or parquet file, a folder of these, "
    "or several as 'a,b'",
    **define,
  )
  flags_lib.define_path(
    values, 'tokenizer', 'a tokenizer.json, or a folder that has one'
  )
  flags_lib.define_path(values, 'target', 'folder to write')
  flags.DEFINE_integer(
    'workers',
    0,
    'number of processes; 0: one for each core',
    upper_bound=_MAX_WORKERS,
    **define,
  )
  flags.DEFINE_integer(
    'shard_documents',
    16384,
    'maximum number of documents in a shard',
    **define,
  )
  flags.DEFINE_string(
    'text_field', 'text', 'field of JSON lines, column of parquet', **define
  )
  flags.DEFINE_string(
    'include', '', "files of folders to read, as '*.md,docs/*'", **define
  )
  flags.DEFINE_string(
    'exclude', '', 'files of folders to leave out, written likewise', **define
  )
  flags.DEFINE_integer(
    'max_document_bytes',
    DataConfig.max_document_bytes,
    'a longer file of text, line or row is refused',
    **define,
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
  if values.max_document_bytes < 1 or not values.text_field:
    raise InputError(
      f'--max_document_bytes={values.max_document_bytes} must be above 0 and '
      f'--text_field={values.text_field!r} a name'
    )
  signal.signal(signal.SIGTERM, _terminate)
  # Imported late, so that everything above answers in a fraction of a second.
  from seekax.data import shard_writer, sources
  from seekax.data.reading_rules import Rules

  progress = _ProgressLine()
  try:
    fresh = shard_writer.tokenize(
      sources.absolute(values.source, os.getcwd()),
      values.tokenizer,
      values.target,
      values.workers or _cores(),
      values.shard_documents,
      progress.update,
      Rules(
        text_field=values.text_field,
        include=values.include,
        exclude=values.exclude,
        max_document_bytes=values.max_document_bytes,
        limit_option='--max_document_bytes',
      ),
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


def _cores() -> int:
  """Number of cores that this process may use, where the system tells it."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _terminate(number: int, frame) -> None:
  del frame
  print('stopped; the same command goes on', file=sys.stderr)
  sys.exit(128 + number)


class _ProgressLine:
  """A terminal line that is overwritten again and again; nothing in a pipe."""

  def __init__(self):
    self._start = time.monotonic()
    self._shown = False

  def update(self, progress) -> None:
    """Shows what is written so far, with the speed of this call."""
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
    """Ends the line."""
    if self._shown:
      print(file=sys.stderr)
