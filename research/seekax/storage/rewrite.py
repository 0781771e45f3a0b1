"""Converts the source's values to the target's dtypes for writing."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import math
import pathlib

from absl import logging
import numpy as np

from seekax.arrays import PyTree
from seekax.configuration.errors import InputError
from seekax.storage import checkpoint, fp8, weights
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import StorageError
from seekax.storage.names import abstract_tree, leaf, Path, Slot
from seekax.storage.open import Found
from seekax.storage.safetensors_file import BLOCK_BYTES, Files
from seekax.storage.safetensors_header import DTYPES, Entry, itemsize, Tensor


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


class _TensorReader:
  """Reads rows of safetensors."""

  def __init__(self, tensors: weights.Tensors, files: Files):
    self.tensors, self.files = tensors, files

  def rows(self, slot: Slot, first: int, last: int) -> np.ndarray:
    """Rows as float32 or bfloat16 values; `first` must start an FP8 block."""
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
  """Reads rows of a training state; one leaf at a time is in memory."""

  def __init__(self, found: Found):
    self.folder = found.folder / workdir_lib.CHECKPOINTS
    assert found.step is not None
    self.step, self.abstract = found.step, abstract_tree(found.model)
    self.part = found.part
    self.path: Path = ()
    self.array = np.empty(0)

  def rows(self, slot: Slot, first: int, last: int) -> np.ndarray:
    if slot.path != self.path:
      self.array = np.empty(0)  # Free it before the next leaf is read.
      self.array, self.path = self._leaf(slot.path), slot.path
    return slot.to_published(self.array[slot.index])[first:last]

  def _leaf(self, path: Path) -> np.ndarray:
    wanted: PyTree = leaf(self.abstract, path)
    wanted = functools.reduce(_nested, reversed(path), wanted)
    found = checkpoint.restore_some(self.folder, self.step, self.part, wanted)
    return np.asarray(leaf(found, path))


def _nested(tree: PyTree, name: str) -> PyTree:
  return {name: tree}


Reader = _TensorReader | _StateReader


def open_reader(found: Found, files: Files) -> Reader:
  return (
    _TensorReader(found.tensors, files)
    if found.tensors
    else _StateReader(found)
  )


def open_base(found: Found, files: Files) -> _TensorReader | None:
  """Opens the FP8 weights that a training run started from, if it did.

  A weight that training didn't change keeps its codes and scales.
  """
  if found.step is None:
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


def parts(
  shard: Sequence[Output],
  reader: Reader,
  base: _TensorReader | None,
  power_of_two: bool,
) -> Iterator[memoryview | Tensor]:
  """Yields the data of a file, end to end."""
  for output in shard:
    name = output.slot.name
    if output.dtype == 'F8_E4M3':
      source: Reader | None = reader
      if output.stored != 'F8_E4M3':
        source = base if _unchanged(output.slot, reader, base) else None
      if not isinstance(source, _TensorReader):
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
  """Yields row ranges of a tensor; each starts an FP8 block."""
  row_bytes = max(math.prod(slot.shape[1:]) * itemsize('F32'), 1)
  step = max(BLOCK_BYTES // row_bytes // fp8.BLOCK, 1) * fp8.BLOCK
  for first in range(0, slot.shape[0], step):
    yield first, min(first + step, slot.shape[0])


def _quantized(
  output: Output, reader: Reader, power_of_two: bool
) -> Iterator[memoryview]:
  """Yields codes block by block, then all scales."""
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
  """Whether a weight still equals the FP8 weight that it started as."""
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
