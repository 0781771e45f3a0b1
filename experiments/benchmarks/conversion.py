"""Converting published weights, beside `cp` and `sync` of the same files.

Claim: `seekax convert` streams: it peaks below 2.5 GiB of resident memory in
each direction, and reads no less than a third of the bytes per second that
`cp -r` and `sync` of the same files reach.
Model: the widths of DeepSeek-V3 with four layers and few experts, random FP8
codes and scales and bfloat16: 8.5 GB in 18 files, made on the spot.
Command: python experiments/benchmarks/conversion.py   (about 10 minutes, 26 GB
of disk in --folder)
Reproduced: both hold for both directions in this run, and loading peaks below
1.25 times the weights. Refuted: one doesn't.

Every round takes the directions in turn, first `cp`, then the conversion, each
with its source alone in the page cache; times include `sync`. The last rows
load the model as every command does, which must hold one copy, and score four
tokens with it, whose peak adds what the compiler wants for one layer. The table
is written anew by every run.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags
import numpy as np

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import script
from seekax.configuration.model import ModelConfig
from seekax.configuration.presets import tiny, v3_671b
from seekax.storage import fp8, huggingface, names, weights
from seekax.storage.published_config import published_config
from seekax.storage.safetensors_file import commit, Files, write
from seekax.storage.safetensors_header import DTYPES, Entry

WANTED_SHARE, WANTED_GIB, WANTED_COPIES = 1 / 3, 2.5, 1.25
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'rounds of a median')
_FOLDER = flags.DEFINE_string(
  'folder', '', "where to work; '': a temporary one"
)


def model(smoke: bool) -> ModelConfig:
  """V3's widths; layers and experts so that FP8 and bfloat16 are 8.5 GB."""
  if smoke:
    return dataclasses.replace(tiny(), mtp_depth=0)
  return dataclasses.replace(
    v3_671b(),
    vocab_size=32768,
    num_layers=4,
    num_dense_layers=1,
    num_experts=48,
    mtp_depth=0,
  )


def make(folder: pathlib.Path, config: ModelConfig, shard_bytes: int) -> None:
  """Writes a published folder of random weights."""
  folder.mkdir(parents=True)
  draw = np.random.default_rng(0)
  shards, size = [[]], 0
  for slot in names.slots(config):
    entries = _entries(slot)
    count = sum(entry.num_bytes for entry in entries)
    if shards[-1] and size + count > shard_bytes:
      shards.append([])
      size = 0
    shards[-1] += entries
    size += count
  listed = {}
  for number, entries in enumerate(shards):
    name = f'model-{number + 1:05d}-of-{len(shards):06d}.safetensors'
    blocks = (block for entry in entries for block in _random(draw, entry))
    write(folder / name, entries, blocks, {'format': 'pt'}, hashed=False)
    commit(folder / name)
    listed |= {entry.name: name for entry in entries}
  index = {'metadata': {}, 'weight_map': listed}
  (folder / weights.INDEX).write_text(json.dumps(index))
  published = published_config(config, 'bfloat16', True, False)
  (folder / huggingface.CONFIG).write_text(json.dumps(published))


def _entries(slot: names.Slot) -> list[Entry]:
  if not slot.in_fp8:
    dtype = 'F32' if slot.is_bias else 'BF16'
    return [Entry(slot.name, dtype, slot.shape)]
  scales = Entry(
    slot.name + fp8.SCALE_SUFFIX, 'F32', fp8.scale_shape(slot.shape)
  )
  return [Entry(slot.name, 'F8_E4M3', slot.shape), scales]


def _random(draw: np.random.Generator, entry: Entry) -> Iterator[memoryview]:
  """Blocks of small normal values, or of FP8 codes that are numbers."""
  left, block = entry.num_bytes, 16 << 20
  while left:
    count = min(left, block)
    if entry.dtype == 'F8_E4M3':
      # Any code but the two that are NaN.
      part = draw.integers(0, 0x7F, count, np.uint8)
      part |= draw.integers(0, 2, count, np.uint8) << 7
    else:
      dtype = DTYPES[entry.dtype]
      values = draw.standard_normal(count // dtype.itemsize, np.float32)
      part = np.abs(values * 0.01).astype(dtype).view(np.uint8)
    yield memoryview(part)
    left -= count


# A small process starts the command, since a child's peak is at least its
# parent's memory at the start.
_LAUNCHER = (
  'import resource, subprocess, sys; '
  'code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); '
  'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); '
  'sys.exit(code)'
)


def timed(*command: str) -> tuple[float, float]:
  """Runs a command and `sync`: (seconds, peak resident GiB).

  Raises:
    RuntimeError: the command failed.
  """
  began = time.perf_counter()
  child = subprocess.run(
    [sys.executable, '-S', '-c', _LAUNCHER, *command],
    capture_output=True,
    text=True,
    check=False,
  )
  os.sync()
  seconds = time.perf_counter() - began
  if child.returncode:
    raise RuntimeError(f'{" ".join(command)}: {child.stderr}')
  return seconds, int(child.stdout) / 2**20


def seekax(*args: str) -> tuple[float, float]:
  return timed(sys.executable, '-m', 'seekax', *args)


def warm(source: pathlib.Path, *others: pathlib.Path) -> None:
  """Puts a folder's files into the page cache, and takes other folders' out."""
  os.sync()
  for folder in others:
    for path in folder.rglob('*') if folder.exists() else ():
      if path.is_file():
        with open(path, 'rb') as file:
          os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
  for path in source.rglob('*'):
    if path.is_file():
      with open(path, 'rb', buffering=0) as file:
        while file.read(16 << 20):
          pass


def measure(folder: pathlib.Path, config: ModelConfig, rounds: int):
  """(bytes read, rows of (what, seconds of cp, seconds, peak GiB))."""
  source, copy = folder / 'published', folder / 'copy'
  ours, back = folder / 'ours', folder / 'back'
  make(source, config, 500_000_000)
  num_bytes = sum(path.stat().st_size for path in source.iterdir())
  directions = {
    'import': (source, ours, '--format=seekax'),
    'export': (ours, back, '--format=huggingface'),
  }
  runs = {what: [] for what in directions}
  for round_ in range(rounds + 1):  # The first warms up and isn't counted.
    for what, (start, end, form) in directions.items():
      shutil.rmtree(end, ignore_errors=True)
      warm(start, source, ours, back)
      copied, _ = timed('cp', '-r', str(start), str(copy))
      shutil.rmtree(copy)
      warm(start, source, ours, back)
      seconds, gib = seekax(
        'convert',
        f'--source={start}',
        f'--target={end}',
        form,
        '--shard_size=500MB',
      )
      print(
        f'{what}: {seconds:.1f} s, {gib:.2f} GiB; cp and sync {copied:.1f} s',
        file=sys.stderr,
      )
      if round_ or not rounds:
        runs[what].append((copied, seconds, gib))
    if round_ == 0:
      check_same(source, back)
  shutil.rmtree(back)
  rows = []
  for what, found in runs.items():
    copied, seconds, gib = zip(*found, strict=True)
    rows.append(
      (what, statistics.median(copied), statistics.median(seconds), max(gib))
    )
  return num_bytes, rows + loading(folder, ours)


def loading(folder: pathlib.Path, ours: pathlib.Path):
  """Rows of loading the model, and of scoring four tokens with it."""
  warm(ours, folder / 'published')
  load = f'open_checkpoint({str(ours)!r}, "bfloat16")'
  code = f'from seekax.storage.open import open_checkpoint; {load}'
  loaded = timed(sys.executable, '-c', code)
  tokens = folder / 'tokens.npy'
  np.save(tokens, np.arange(4, dtype=np.int32)[None])
  scored = seekax(
    'score',
    f'--checkpoint={ours}',
    f'--tokens={tokens}',
    '--precision=bfloat16',
  )
  return [('load', None, *loaded), ('load and score', None, *scored)]


def check_same(source: pathlib.Path, back: pathlib.Path) -> None:
  """Raises AssertionError unless import and export kept all tensors' bytes."""
  there, here = weights.find_tensors(source), weights.find_tensors(back)
  if there.keys() != here.keys():
    raise AssertionError('the export has other tensors than the source')
  for name, tensor in there.items():
    other = here[name]
    with Files() as one, Files() as two:
      blocks = zip(one.blocks(tensor), two.blocks(other), strict=True)
      if not all(a == b for a, b in blocks):
        raise AssertionError(f'{name} differs')


def _row(num_bytes, what, copied, seconds, gib) -> dict[str, str]:
  row = {
    'what': what,
    'gigabytes': f'{num_bytes / 1e9:.3f}',
    'seconds': f'{seconds:.2f}',
    'megabytes_per_second': f'{num_bytes / seconds / 1e6:.0f}',
    'cp_seconds': '',
    'of_cp': '',
    'peak_gib': f'{gib:.2f}',
    'verdict': '',
    'machine': f'{platform.machine()}, {os.cpu_count()} cores',
  }
  if what == 'load':
    held = gib * 2**30 < WANTED_COPIES * num_bytes
    row['verdict'] = 'reproduced' if held else 'refuted'
  if copied is not None:
    row['cp_seconds'] = f'{copied:.2f}'
    row['of_cp'] = f'{copied / seconds:.2f}'
    held = copied / seconds >= WANTED_SHARE and gib < WANTED_GIB
    row['verdict'] = 'reproduced' if held else 'refuted'
  return row


def run(stem: pathlib.Path, smoke: bool) -> None:
  """Measures both directions; writes and prints the table."""
  rounds = 0 if smoke else _ROUNDS.value
  with tempfile.TemporaryDirectory(dir=_FOLDER.value or None) as folder:
    num_bytes, found = measure(pathlib.Path(folder), model(smoke), rounds)
  rows = [_row(num_bytes, *result) for result in found]
  table = script.file_of(stem, '.csv')
  table.unlink(missing_ok=True)
  # Lines end as those of the table that was recorded first.
  script.append_rows(table, rows, newline='\r\n')
  for row in rows:
    print('  '.join(f'{name} {value}' for name, value in row.items()))


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(argv, run, full=False, smoke=True)


if __name__ == '__main__':
  app.run(main)
