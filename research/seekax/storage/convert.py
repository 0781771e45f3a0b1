"""From one folder of weights to another, tensor by tensor.

Between safetensors nothing larger than a block is ever in memory; from a
training state, one leaf. Every shard is written under a temporary name and
carries the conversion's fingerprint, so that the same command goes on with the
shards that are missing. What makes a target look complete is written last.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import dataclasses
import hashlib
import json
import math
import pathlib
import shutil
from typing import Any

from absl import logging
import numpy as np

from seekax.config import InputError, to_dict
from seekax.model.parameters import abstract_weights
from seekax.storage import checkpoint, fp8, huggingface, weights
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import file_hash, StorageError, write_atomically
from seekax.storage.names import leaf, Path, Slot, slots
from seekax.storage.open import find, Found
from seekax.storage.safetensors_file import (
  BLOCK_BYTES,
  commit,
  DTYPES,
  Entry,
  Files,
  itemsize,
  read_header,
  Tensor,
  write,
)

FORMATS = ('seekax', 'huggingface')
DTYPE_CHOICES = ('keep', 'float32', 'bfloat16', 'float8')
_TARGET_DTYPES = {'float32': 'F32', 'bfloat16': 'BF16', 'float8': 'F8_E4M3'}
FINGERPRINT = 'seekax_conversion'
# Small files that belong to the weights; code is never among them.
_CARRIED = (
  workdir_lib.TOKENIZER,
  *workdir_lib.TOKENIZER_COMPANIONS,
  'generation_config.json',
  'tokenizer.model',
  'tiktoken.model',
)


@dataclasses.dataclass(frozen=True)
class Options:
  """What the user asks for.

  Attributes:
    format: seekax (a workdir) or huggingface.
    dtype: keep, float32, bfloat16 or float8.
    drop_mtp: leave the MTP modules out.
    shard_bytes: a file takes tensors until it would be larger.
  """

  format: str = 'seekax'
  dtype: str = 'keep'
  drop_mtp: bool = False
  shard_bytes: int = 5_000_000_000


@dataclasses.dataclass(frozen=True)
class Output:
  """A weight of the target, with its scales if it is FP8.

  Attributes:
    slot: its name and shape.
    stored: dtype in the source.
    dtype: dtype in the target.
  """

  slot: Slot
  stored: str
  dtype: str

  @property
  def entries(self) -> list[Entry]:
    entries = [Entry(self.slot.name, self.dtype, self.slot.shape)]
    if self.dtype == 'F8_E4M3':
      name = self.slot.name + fp8.SCALE_SUFFIX
      entries.append(Entry(name, 'F32', fp8.scale_shape(self.slot.shape)))
    return entries

  @property
  def num_bytes(self) -> int:
    return sum(entry.num_bytes for entry in self.entries)


# (files done, of how many, name, bytes of the file)
Progress = Callable[[int, int, str, int], None]


def convert(
  source: str,
  target: str,
  options: Options,
  progress: Progress = lambda *unused: None,
) -> bool:
  """Converts a model; the same call again goes on where it stopped.

  Args:
    source: a workdir or a folder of published weights.
    target: a folder; made if missing.
    options: what to write.
    progress: called after every file.

  Returns:
    False if the target was complete already.

  Raises:
    StorageError: source or target can't be used; what was wrong with the
      source is found before anything is written.
  """
  found = find(source, options.drop_mtp)
  found.check()
  conversion = _Conversion(found, pathlib.Path(target), options)
  if conversion.is_done():
    return False
  conversion.check_target()
  workdir_lib.prepare(conversion.target)
  with workdir_lib.lock(conversion.target):
    conversion.run(progress)
  return True


class _Conversion:
  """One conversion: its plan and its parts."""

  def __init__(self, found: Found, target: pathlib.Path, options: Options):
    self.found, self.target, self.options = found, target, options
    self.seekax = options.format == 'seekax'
    self.power_of_two = _power_of_two(found)
    self.outputs = [self._output(slot) for slot in slots(found.model)]
    if found.step is not None:
      # Leaf by leaf: a training state keeps all layers of a weight as one.
      self.outputs.sort(key=lambda output: output.slot.path)
    self.shards = _shards(self.outputs, options.shard_bytes)
    self.fingerprint = self._fingerprint()
    self.files = Files()
    # Here, so that a model without a published form is refused early.
    self.config = self._published_config()

  def _output(self, slot: Slot) -> Output:
    stored = 'F32'
    if self.found.tensors:
      stored = self.found.tensors[slot.name].dtype
    dtype = _TARGET_DTYPES.get(self.options.dtype, stored)
    if self.options.dtype != 'keep':
      if slot.is_bias:
        dtype = 'F32'
      elif dtype == 'F8_E4M3' and not slot.in_fp8:
        dtype = 'BF16'
    return Output(slot, stored, dtype)

  @property
  def folder(self) -> pathlib.Path:
    """Where the safetensors go."""
    return self.target / workdir_lib.WEIGHTS if self.seekax else self.target

  @property
  def final(self) -> pathlib.Path:
    """The file that makes the target complete."""
    name = workdir_lib.RUN if self.seekax else huggingface.CONFIG
    return self.target / name

  def shard_name(self, number: int) -> str:
    count = len(self.shards)
    if count == 1:
      return weights.SINGLE
    return f'model-{number + 1:05d}-of-{count:06d}.safetensors'

  def _fingerprint(self) -> str:
    """Of the source's files and of what is asked for."""
    found, stamps = self.found, []
    for path in sorted({tensor.file for tensor in found.tensors.values()}):
      status = path.stat()
      stamps.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    if found.step is not None:
      manifest = checkpoint.manifest_path(
        found.folder / workdir_lib.CHECKPOINTS, found.step
      )
      stamps.append([found.step, file_hash(manifest)])
    text = json.dumps([stamps, dataclasses.astuple(self.options)])
    return hashlib.sha256(text.encode()).hexdigest()

  def is_done(self) -> bool:
    """Whether the target is this very conversion, complete."""
    return self.final.is_file() and all(
      self._has_shard(number) for number in range(len(self.shards))
    )

  def _has_shard(self, number: int) -> bool:
    path = self.folder / self.shard_name(number)
    if not path.is_file():
      return False
    try:
      return read_header(path)[1].get(FINGERPRINT) == self.fingerprint
    except StorageError:
      return False

  def check_target(self) -> None:
    """Raises StorageError for a target that can't be written.

    Raises:
      StorageError: it holds something else, is the source, or has no room.
    """
    target, source = self.target.resolve(), self.found.folder.resolve()
    if target == source or source in target.parents or target in source.parents:
      raise StorageError(
        f'--target={self.target} and --source={self.found.folder} lie in each '
        'other; choose another folder'
      )
    if self.target.exists() and not self.target.is_dir():
      raise StorageError(f'--target={self.target} is a file; choose a folder')
    ours = {self.shard_name(n) for n in range(len(self.shards))}
    for folder in {self.target, self.folder}:
      for path in folder.iterdir() if folder.is_dir() else ():
        self._refuse_foreign(path, ours)
    done = [self._has_shard(number) for number in range(len(self.shards))]
    needed = sum(
      output.num_bytes
      for shard, there in zip(self.shards, done, strict=True)
      for output in shard
      if not there
    )
    existing = self.target
    while not existing.exists():
      existing = existing.absolute().parent
    free = shutil.disk_usage(existing).free
    if needed > free:
      raise StorageError(
        f'--target={self.target} needs {needed / 1e9:.2f} GB, the disk has '
        f'{free / 1e9:.2f} GB left; make room or choose another disk'
      )

  def _refuse_foreign(self, path: pathlib.Path, ours: set[str]) -> None:
    """Refuses a target with files that this conversion didn't write."""
    name = path.name.removesuffix('.tmp')
    if path.suffix == '.tmp' or name == '.lock' or path == self.folder:
      return
    if path.suffix == '.safetensors' and name in ours:
      metadata = read_header(path)[1]
      if metadata.get(FINGERPRINT) == self.fingerprint:
        return
    elif path.name in _CARRIED and not self.final.exists():
      return
    raise StorageError(
      f'--target={self.target} holds {path.name} of something else; choose an '
      'empty folder'
    )

  def _published_config(self) -> dict[str, Any]:
    """The target's config.json; {} for a workdir."""
    if self.seekax:
      return {}
    is_fp8 = any(output.dtype == 'F8_E4M3' for output in self.outputs)
    plain = (o for o in self.outputs if not o.slot.in_fp8)
    main = next(output for output in plain if not output.slot.is_bias)
    dtype = {'F32': 'float32'}.get(main.dtype, 'bfloat16')
    made = huggingface.published_config(
      self.found.model, dtype, is_fp8, self.power_of_two
    )
    return huggingface.carry_fields(made, self.found.published) | (
      _control_ids(self.found)
    )

  def run(self, progress: Progress) -> None:
    """Writes what is missing of the target."""
    self.folder.mkdir(parents=True, exist_ok=True)
    reader = _reader(self.found, self.files)
    base = _base(self.found, self.options, self.files)
    hashes = {}
    # Checksums of the source are checked, and files made durable, meanwhile.
    with self.files, concurrent.futures.ThreadPoolExecutor(2) as pool:
      verified = pool.submit(self.found.verify)
      durable: concurrent.futures.Future | None = None
      for number, shard in enumerate(self.shards):
        path = self.folder / self.shard_name(number)
        if self._has_shard(number):
          hashes[path.name] = file_hash(path) if self.seekax else ''
          continue
        hashes[path.name] = write(
          path,
          [entry for output in shard for entry in output.entries],
          _parts(shard, reader, base, self.power_of_two),
          {'format': 'pt', FINGERPRINT: self.fingerprint},
          self.files,
          hashed=self.seekax,
        )
        if durable is not None:
          durable.result()
        if verified.done():
          verified.result()
        durable = pool.submit(self._commit, number, progress)
      if durable is not None:
        durable.result()
      verified.result()
    self._finish(hashes)

  def _commit(self, number: int, progress: Progress) -> None:
    path = self.folder / self.shard_name(number)
    commit(path)
    progress(number + 1, len(self.shards), path.name, path.stat().st_size)

  def _finish(self, hashes: dict[str, str]) -> None:
    if len(self.shards) > 1:
      text = json.dumps(self._index(), indent=2) + '\n'
      write_atomically(self.folder / weights.INDEX, text)
    for name in _CARRIED:
      if (self.found.folder / name).is_file():
        shutil.copyfile(self.found.folder / name, self.target / name)
    if not self.seekax:
      _complete_tokenizer(self.found, self.target)
      (self.target / '.lock').unlink(missing_ok=True)
      write_atomically(self.final, json.dumps(self.config, indent=2) + '\n')
      return
    if len(self.shards) > 1:
      hashes[weights.INDEX] = file_hash(self.folder / weights.INDEX)
    write_atomically(
      self.target / workdir_lib.WEIGHTS_MANIFEST,
      ''.join(
        f'{digest}  {workdir_lib.WEIGHTS}/{name}\n'
        for name, digest in hashes.items()
      ),
    )
    if self.found.published:
      write_atomically(
        self.target / workdir_lib.PUBLISHED_CONFIG,
        json.dumps(self.found.published, indent=2) + '\n',
      )
    workdir_lib.write_run(
      self.target,
      {
        'config': to_dict(self.found.config),
        'overrides': {},
        'started_from': str(self.found.folder.resolve()),
        'conversion': dataclasses.asdict(self.options),
      },
    )

  def _index(self) -> dict[str, Any]:
    listed = {
      entry.name: self.shard_name(number)
      for number, shard in enumerate(self.shards)
      for output in shard
      for entry in output.entries
    }
    total = sum(output.num_bytes for output in self.outputs)
    return {'metadata': {'total_size': total}, 'weight_map': listed}


def _power_of_two(found: Found) -> bool:
  if not found.published:
    return False
  return huggingface.quantization(found.published, str(found.folder))[1]


def _shards(outputs: Sequence[Output], limit: int) -> list[list[Output]]:
  """Tensors in order, cut where a file would become larger than the limit."""
  shards: list[list[Output]] = [[]]
  size = 0
  for output in outputs:
    if shards[-1] and size + output.num_bytes > limit:
      shards.append([])
      size = 0
    shards[-1].append(output)
    size += output.num_bytes
  return shards


# --- Where values come from. --------------------------------------------------


class _TensorReader:
  """Rows of safetensors."""

  def __init__(self, tensors: weights.Tensors, files: Files):
    self.tensors, self.files = tensors, files

  def rows(self, slot: Slot, first: int, last: int) -> np.ndarray:
    """Rows as float32 or bfloat16 values; `first` begins a block of FP8."""
    tensor = self.tensors[slot.name]
    part = self.files.rows(tensor, first, last)
    if tensor.dtype != 'F8_E4M3':
      return part
    scales = self.files.rows(
      self.tensors[slot.name + fp8.SCALE_SUFFIX],
      first // fp8.BLOCK,
      math.ceil(last / fp8.BLOCK),
    )
    return fp8.dequantize(part, scales, np.dtype(np.float32))


class _StateReader:
  """Rows of a training state, of which one leaf is held at a time."""

  def __init__(self, found: Found):
    self.folder = found.folder / workdir_lib.CHECKPOINTS
    self.step, self.abstract = found.step, abstract_weights(found.model)
    self.path: Path = ()
    self.array = np.empty(0)

  def rows(self, slot: Slot, first: int, last: int) -> np.ndarray:
    if slot.path != self.path:
      self.array = np.empty(0)  # Freed before the next one is read.
      self.array, self.path = self._leaf(slot.path), slot.path
    return slot.to_published(self.array[slot.index])[first:last]

  def _leaf(self, path: Path) -> np.ndarray:
    wanted = leaf(self.abstract, path)
    for name in reversed(path):
      wanted = {name: wanted}
    found = checkpoint.restore_some(self.folder, self.step, 'weights', wanted)
    return np.asarray(leaf(found, path))


Reader = _TensorReader | _StateReader


def _reader(found: Found, files: Files) -> Reader:
  return (
    _TensorReader(found.tensors, files)
    if found.tensors
    else _StateReader(found)
  )


def _base(found: Found, options: Options, files: Files) -> _TensorReader | None:
  """The FP8 weights that a training run started from, if it did.

  A weight that training left as it was keeps its codes and scales.
  """
  if found.step is None or options.dtype != 'float8':
    return None
  path = found.folder
  if not workdir_lib.has_weights(path):
    path = workdir_lib.read_run(found.folder).get('started_from', '')
  if not path:
    return None
  try:
    folder = pathlib.Path(path)
    if workdir_lib.has_weights(folder):
      folder = folder / workdir_lib.WEIGHTS
    tensors = weights.find_tensors(folder)
  except (InputError, OSError) as error:
    logging.warning(
      'what the run started from can not be read (%s): every weight is '
      'quantised anew',
      error,
    )
    return None
  fp8_only = {n: t for n, t in tensors.items() if _is_fp8(tensors, n)}
  return _TensorReader(fp8_only, files)


def _is_fp8(tensors: weights.Tensors, name: str) -> bool:
  weight = tensors.get(name.removesuffix(fp8.SCALE_SUFFIX))
  scales = tensors.get(name.removesuffix(fp8.SCALE_SUFFIX) + fp8.SCALE_SUFFIX)
  return bool(weight and scales and weight.dtype == 'F8_E4M3')


# --- What is written. ---------------------------------------------------------


def _parts(
  shard: Sequence[Output],
  reader: Reader,
  base: _TensorReader | None,
  power_of_two: bool,
) -> Iterator[memoryview | Tensor]:
  """The data of a file, end to end."""
  for output in shard:
    name = output.slot.name
    if output.dtype == 'F8_E4M3':
      source = reader
      if output.stored != 'F8_E4M3':
        source = base if _unchanged(output.slot, reader, base) else None
      if source is None:
        yield from _quantized(output, reader, power_of_two)
      else:
        yield source.tensors[name]
        yield source.tensors[name + fp8.SCALE_SUFFIX]
    elif output.dtype == output.stored and isinstance(reader, _TensorReader):
      yield reader.tensors[name]
    else:
      dtype = DTYPES[output.dtype]
      for first, last in _row_blocks(output.slot):
        part = reader.rows(output.slot, first, last)
        yield _bytes(part.astype(dtype, copy=False))


def _row_blocks(slot: Slot) -> Iterator[tuple[int, int]]:
  """Row ranges of a tensor; each begins a block of FP8."""
  row_bytes = max(math.prod(slot.shape[1:]) * itemsize('F32'), 1)
  step = max(BLOCK_BYTES // row_bytes // fp8.BLOCK, 1) * fp8.BLOCK
  for first in range(0, slot.shape[0], step):
    yield first, min(first + step, slot.shape[0])


def _quantized(
  output: Output, reader: Reader, power_of_two: bool
) -> Iterator[memoryview]:
  """Codes block by block, then all scales."""
  scales = []
  for first, last in _row_blocks(output.slot):
    part = reader.rows(output.slot, first, last).astype(np.float32, copy=False)
    if not np.isfinite(part).all():
      raise StorageError(
        f'tensor {output.slot.name!r} holds values that are no numbers; FP8 '
        'can not hold them'
      )
    codes, some = fp8.quantize(part, power_of_two)
    scales.append(some)
    yield _bytes(codes)
  yield _bytes(np.concatenate(scales))


def _unchanged(slot: Slot, reader: Reader, base: _TensorReader | None) -> bool:
  """Whether a weight still has the values of the FP8 weight it started as."""
  if base is None or slot.name not in base.tensors:
    return False
  if base.tensors[slot.name].shape != slot.shape:
    return False
  return all(
    np.array_equal(reader.rows(slot, first, last), base.rows(slot, first, last))
    for first, last in _row_blocks(slot)
  )


def _bytes(array: np.ndarray) -> memoryview:
  return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _control_ids(found: Found) -> dict[str, int]:
  """BOS and EOS for config.json, where the published one has none."""
  if found.published or not (found.folder / workdir_lib.TOKENIZER).is_file():
    return {}
  tokenizer = found.tokenizer()
  return {'bos_token_id': tokenizer.bos_id, 'eos_token_id': tokenizer.eos_id}


def _complete_tokenizer(found: Found, target: pathlib.Path) -> None:
  """A tokenizer_config.json beside a tokenizer.json of our own making."""
  path = target / 'tokenizer_config.json'
  if path.exists() or not (target / workdir_lib.TOKENIZER).is_file():
    return
  tokenizer = found.tokenizer()
  content = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': tokenizer.bos,
    'eos_token': tokenizer.eos,
    'model_max_length': found.model.context_length,
    'clean_up_tokenization_spaces': False,
  }
  write_atomically(path, json.dumps(content, indent=2) + '\n')
