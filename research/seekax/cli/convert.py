"""`seekax convert`: from published weights to a workdir and back."""

from collections.abc import Sequence
import re
import signal
import sys
import time

from absl import flags

from seekax.cli import flags as flags_lib
from seekax.configuration.errors import InputError

_UNITS = {'B': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9, 'TB': 10**12}
_UNITS |= {'KIB': 2**10, 'MIB': 2**20, 'GIB': 2**30, 'TIB': 2**40}


def run(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  values = flags.FlagValues()
  define = {'flag_values': values}
  flags_lib.define_path(values, 'source', 'a workdir or a Hugging Face folder')
  flags_lib.define_path(values, 'target', 'folder to write')
  flags.DEFINE_bool(
    'ema', False, "a run's averaged weights (optim.ema_decay)", **define
  )
  flags.DEFINE_enum(
    'format',
    'seekax',
    ('seekax', 'huggingface'),
    'a workdir, or a folder that transformers, vLLM and SGLang read',
    **define,
  )
  flags.DEFINE_enum(
    'dtype',
    'keep',
    ('keep', 'float32', 'bfloat16', 'float8'),
    'dtype of the weights; float8: E4M3 with a scale per 128x128 block',
    **define,
  )
  flags.DEFINE_enum(
    'mtp', 'keep', ('keep', 'drop'), 'multi-token prediction modules', **define
  )
  flags.DEFINE_string(
    'shard_size',
    '5GB',
    'maximum size of a file, e.g. 500MB; a tensor is never cut',
    **define,
  )
  flags_lib.parse(
    values,
    argv,
    'convert',
    'Converts weights, tensor by tensor. The same command again goes on where '
    'it stopped.',
  )
  flags_lib.require(values, 'source', 'target')
  shard_bytes = _bytes(values.shard_size)
  signal.signal(signal.SIGTERM, _terminate)
  # Imported late, so that everything above answers in a fraction of a second.
  from seekax.storage import convert as convert_lib

  options = convert_lib.Options(
    values.format,
    values.dtype,
    values.mtp == 'drop',
    shard_bytes,
    averaged=values.ema,
  )
  progress = _Progress()
  try:
    fresh = convert_lib.convert(
      values.source, values.target, options, progress.file
    )
  except KeyboardInterrupt:
    print('stopped; the same command goes on', file=sys.stderr)
    raise
  if not fresh:
    print(f'{values.target} is complete already', file=sys.stderr)
  print(values.target)
  return 0


def _bytes(text: str) -> int:
  match = re.fullmatch(r'(\d{1,9}(?:\.\d{1,9})?)\s*([A-Za-z]+)', text)
  size = 0
  if match and (unit := _UNITS.get(match.group(2).upper())):
    size = int(float(match.group(1)) * unit)
  if size < 1:
    raise InputError(
      f'--shard_size={text!r} is no size; write it as 5GB or 500MB'
    )
  return size


def _terminate(number: int, frame) -> None:
  del frame
  print('stopped; the same command goes on', file=sys.stderr)
  sys.exit(128 + number)


class _Progress:
  """Prints a line per file, with the speed and the time left."""

  def __init__(self):
    self.start, self.bytes, self.files = time.monotonic(), 0, 0

  def file(self, number: int, count: int, name: str, size: int) -> None:
    """Prints that a file is written."""
    self.bytes += size
    self.files += 1
    seconds = max(time.monotonic() - self.start, 1e-9)
    left = seconds / self.files * (count - number)
    print(
      f'{number}/{count} {name}  {size / 1e9:.2f} GB  '
      f'{self.bytes / seconds / 1e6:,.0f} MB/s  eta '
      f'{int(left) // 60}:{int(left) % 60:02d}',
      file=sys.stderr,
      flush=True,
    )
