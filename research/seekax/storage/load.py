"""Reads published tensors straight into the arrays of our tree, leaf by leaf.

Every shard of a leaf is one buffer, filled from byte ranges of the files and
given to its device, without a copy where the device is the CPU. A process reads
the rows of a matrix that its shards need. If a shard needs a part of the
columns that is smaller than a page, whole rows are read, because the disk would
read them anyway.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import dataclasses
import math

import jax
import numpy as np

from seekax.arrays import PyTree
from seekax.configuration.model import ModelConfig
from seekax.model.parameters import FLOAT32
from seekax.ops.quantize import BlockScaled
from seekax.storage import fp8
from seekax.storage.finite import check_block, first_bad
from seekax.storage.names import (
  abstract_tree,
  BIAS,
  leaf,
  Path,
  Slot,
  slots,
)
from seekax.storage.safetensors_file import BLOCK_BYTES, Files
from seekax.storage.safetensors_header import DTYPES, itemsize, Tensor

_PAGE = 4096
_ALIGNMENT = 64  # XLA uses host memory of this alignment without a copy.
_THREADS = 4
_STRIP = 64  # Number of rows that are transposed together.
Slices = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class _Source:
  """What the leaves are read from."""

  files: Files
  tensors: dict[str, Tensor]
  dtype: str
  expand_fp8: bool


def load(
  config: ModelConfig,
  tensors: dict[str, Tensor],
  dtype: str,
  expand_fp8: bool = False,
  shardings: PyTree = None,
  files: Files | None = None,
) -> dict[str, PyTree]:
  """Reads weights and router bias.

  Args:
    config: the model.
    tensors: tensors of a folder, already compared with the model's list.
    dtype: float32 or bfloat16; router, norms and router bias are float32.
    expand_fp8: whether FP8 weights become arrays (to train them) or stay
      BlockScaled pairs.
    shardings: sharding of each leaf, in the tree's structure; None: one device.
    files: open files, which count the bytes read.

  Returns:
    {'params', 'router_bias'} in the model's layout.
  """
  source = _Source(files or Files(), tensors, dtype, expand_fp8)
  by_path: dict[Path, list[Slot]] = {}
  for slot in slots(config):
    if not slot.is_copy:
      by_path.setdefault(slot.path, []).append(slot)
  tree = abstract_tree(config)
  single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with source.files:
    for path, members in by_path.items():
      sharding = leaf(shardings, path) if shardings else single
      shape = leaf(tree, path).shape
      leaf(tree, path[:-1])[path[-1]] = _leaf(source, members, shape, sharding)
  return tree


def _leaf(
  source: _Source,
  members: Sequence[Slot],
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding,
) -> PyTree:
  """Reads a leaf: an array, or codes and scales if all its tensors are FP8."""
  stored = {source.tensors[slot.name].dtype for slot in members}
  dtype = _dtype(source, members[0])
  if stored != {'F8_E4M3'} or source.expand_fp8:
    return _array(shape, sharding, dtype, members, _values(source, dtype))
  first = members[0]
  lead = len(shape) - len(first.inner)
  scale_members = [
    dataclasses.replace(
      slot,
      name=slot.name + fp8.SCALE_SUFFIX,
      shape=fp8.scale_shape(slot.shape),
      inner=fp8.scale_shape(slot.shape)[::-1],
      inputs=1,
    )
    for slot in members
  ]
  scales = _array(
    (*shape[:lead], *scale_members[0].inner),
    _leading(sharding, lead),
    np.dtype(np.float32),
    scale_members,
    _stored(source),
  )
  codes = _array(shape, sharding, np.dtype(np.uint8), members, _codes(source))
  outputs = len(first.inner) - first.inputs
  return BlockScaled(codes, scales, first.inputs, outputs, source.dtype)


def _dtype(source: _Source, slot: Slot) -> np.dtype:
  keep = slot.path[0] == BIAS or set(slot.path) & set(FLOAT32)
  return np.dtype(np.float32) if keep else jax.numpy.dtype(source.dtype)


def _leading(
  sharding: jax.sharding.Sharding, lead: int
) -> jax.sharding.Sharding:
  """The sharding of scales: only the leading axes are split."""
  if not isinstance(sharding, jax.sharding.NamedSharding):
    return sharding
  spec = jax.sharding.PartitionSpec(*sharding.spec[:lead])
  return jax.sharding.NamedSharding(sharding.mesh, spec)


# Maps (slot, first row, last row, columns) to that part in published layout.
Reader = Callable[[Slot, int, int, slice], np.ndarray]


def _stored(source: _Source) -> Reader:
  """Reads a part in its stored dtype."""

  def read(slot: Slot, first: int, last: int, columns: slice) -> np.ndarray:
    tensor = source.tensors[slot.name]
    if len(tensor.shape) == 1:
      return source.files.rows(tensor, first, last)
    width, size = tensor.shape[1], itemsize(tensor.dtype)
    count = columns.stop - columns.start
    if count == width or count * size < _PAGE:
      return source.files.rows(tensor, first, last)[:, columns]
    out = np.empty((last - first, count), DTYPES[tensor.dtype])
    rows = out.view(np.uint8)
    for i, row in enumerate(range(first, last)):
      offset = (row * width + columns.start) * size
      source.files.read_unchecked(tensor, offset, memoryview(rows[i]))
    at = first_bad(rows.reshape(-1), tensor.dtype, tensor.name)
    if at >= 0:
      place = (first + at // count) * width + columns.start + at % count
      raw = rows.reshape(-1)[at * size :][:size]
      check_block(
        raw, tensor.dtype, tensor.name, tensor.file, tensor.shape, place
      )
    return out

  return read


def _codes(source: _Source) -> Reader:
  """Reads a part of FP8 codes as bytes."""
  stored = _stored(source)

  def read(slot: Slot, first: int, last: int, columns: slice) -> np.ndarray:
    return stored(slot, first, last, columns).view(np.uint8)

  return read


def _values(source: _Source, dtype: np.dtype) -> Reader:
  """Reads a part as values of a dtype; FP8 is expanded."""
  stored = _stored(source)

  def read(slot: Slot, first: int, last: int, columns: slice) -> np.ndarray:
    if source.tensors[slot.name].dtype != 'F8_E4M3':
      return stored(slot, first, last, columns).astype(dtype, copy=False)
    # Only whole blocks can be expanded.
    top = first // fp8.BLOCK * fp8.BLOCK
    bottom = -(-last // fp8.BLOCK)
    codes = stored(slot, top, last, slice(0, slot.shape[1]))
    scales = source.files.rows(
      source.tensors[slot.name + fp8.SCALE_SUFFIX], top // fp8.BLOCK, bottom
    )
    return fp8.dequantize(codes, scales, dtype)[first - top :, columns]

  return read


def _array(
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding,
  dtype: np.dtype,
  members: Sequence[Slot],
  read: Reader,
) -> jax.Array:
  """Makes an array; its shards are filled one after the other."""

  def shard(index: Slices | None) -> np.ndarray:
    assert index is not None  # None is of shardings without indices.
    whole = [
      part.indices(size)[:2] for part, size in zip(index, shape, strict=True)
    ]
    out = _empty(tuple(stop - start for start, stop in whole), dtype)
    jobs = [job for slot in members for job in _jobs(out, slot, whole, read)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      for done in [pool.submit(job) for job in jobs]:
        done.result()
    return out

  return jax.make_array_from_callback(shape, sharding, shard)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Uninitialised memory that XLA uses on a CPU without a copy."""
  size = math.prod(shape) * dtype.itemsize
  raw = np.empty(size + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + size].view(dtype).reshape(shape)


def _jobs(
  out: np.ndarray,
  slot: Slot,
  wanted: Sequence[tuple[int, int]],
  read: Reader,
) -> Iterator[Callable[[], None]]:
  """Yields the tasks that fill a slot's part of a shard, block by block.

  Args:
    out: the shard.
    slot: a tensor of the leaf.
    wanted: (start, stop) of the shard on every axis of the leaf.
    read: reads parts in the published layout.
  """
  lead = len(slot.index)
  position = []
  for at, (start, stop) in zip(slot.index, wanted[:lead], strict=True):
    if not start <= at < stop:
      return
    position.append(at - start)
  target = out[tuple(position)]
  inner = wanted[lead:]
  # Published rows are our output axis, or our first axis without transposition.
  row_axis = slot.inputs if slot.inputs else 0
  per_row = math.prod(slot.inner[row_axis + 1 :]) if slot.inputs else 1
  columns = _columns(slot, inner)
  step = max(BLOCK_BYTES // max(_row_bytes(slot) * per_row, 1), 1)
  start, stop = inner[row_axis]
  for first in range(start, stop, step):
    last = min(first + step, stop)
    yield lambda first=first, last=last: _copy(
      target, slot, inner, row_axis, per_row, first, last, columns, read
    )


def _row_bytes(slot: Slot) -> int:
  return math.prod(slot.shape[1:]) * 4


def _columns(slot: Slot, inner: Sequence[tuple[int, int]]) -> slice:
  """The published columns that a shard needs, from our first input axis."""
  if not slot.inputs:
    return slice(0, math.prod(slot.shape[1:]))
  per_column = math.prod(slot.inner[1 : slot.inputs])
  return slice(inner[0][0] * per_column, inner[0][1] * per_column)


def _copy(
  target, slot, inner, row_axis, per_row, first, last, columns, read
) -> None:
  """Reads rows and writes them to their place in the shard."""
  part = read(slot, first * per_row, last * per_row, columns)
  begin = inner[row_axis][0]
  if not slot.inputs:
    rest = tuple(slice(*axis) for axis in inner[1:])
    target[first - begin : last - begin] = part[(slice(None), *rest)]
    return
  # [rows, columns] to our axes; the first input axis and the first output axis
  # are limited to the part that was read.
  shape = list(slot.inner)
  shape[0] = inner[0][1] - inner[0][0]
  shape[row_axis] = last - first
  ours = _transposed(part).reshape(shape)
  cut = [slice(*axis) for axis in inner]
  cut[0] = cut[row_axis] = slice(None)
  place = [slice(None)] * len(shape)
  place[row_axis] = slice(first - begin, last - begin)
  target[tuple(place)] = ours[tuple(cut)]


def _transposed(part: np.ndarray) -> np.ndarray:
  """A transposed copy, made in strips whose lines stay in the cache.

  NumPy's own transposition took 12 times as long for bytes, 7 times for floats.
  """
  out = np.empty(part.shape[::-1], part.dtype)
  for row in range(0, part.shape[0], _STRIP):
    out[:, row : row + _STRIP] = part[row : row + _STRIP].T
  return out
