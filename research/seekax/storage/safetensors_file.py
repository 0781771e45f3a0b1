"""One safetensors file: its checked header, byte ranges of it, a writer.

The container is a length of eight bytes, a JSON header and raw data. The
safetensors package accepts names such as `../../x` and a key twice, and its
NumPy front end knows no FP8; so the container is read and written here, by
ranges and blocks, never as a whole.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import reprlib
import threading
from typing import Any

import ml_dtypes
import numpy as np

from seekax.storage.manifest import StorageError

# Names in the container, and what NumPy calls them.
DTYPES: dict[str, np.dtype] = {
  'F32': np.dtype(np.float32),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
}
# Known to the format; never the dtype of a weight that is used here.
_OTHER_DTYPES = {'F64': 8, 'F16': 2, 'F8_E5M2': 1, 'F8_E8M0': 1, 'BOOL': 1}
_OTHER_DTYPES |= {
  f'{kind}{bits}': bits // 8 for kind in 'IU' for bits in (8, 16, 32, 64)
}

_LENGTH_BYTES = 8
_PAGE = 4096
_MAX_HEADER_BYTES = 100_000_000  # The safetensors package's own limit.
_NAME = re.compile(r'[A-Za-z0-9_.\-]{1,512}')
# Beyond these, products of sizes would take long or have no decimal spelling.
_MAX_AXES = 8
_MAX_SIZE = 2**63
_METADATA = '__metadata__'
# Data moves in blocks of this many bytes.
BLOCK_BYTES = 16 << 20
# Hashed, written and read ahead by this much, while it is in the cache.
_COPY_BYTES = 1 << 20
# What the kernel says where it can't copy from one file to another.
_NO_KERNEL_COPY = (
  errno.EXDEV,
  errno.ENOSYS,
  errno.EOPNOTSUPP,
  errno.EINVAL,
  errno.EPERM,
)


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file.

  Attributes:
    file: the safetensors file.
    name: its key.
    dtype: as the container spells it, e.g. BF16.
    shape: as published, (out, in) for a matrix.
    start: offset of its first byte in the file.
  """

  file: pathlib.Path
  name: str
  dtype: str
  shape: tuple[int, ...]
  start: int

  @property
  def num_bytes(self) -> int:
    return math.prod(self.shape) * itemsize(self.dtype)


def itemsize(dtype: str) -> int:
  """Bytes of one value."""
  known = DTYPES.get(dtype)
  return known.itemsize if known else _OTHER_DTYPES[dtype]


def read_header(
  path: pathlib.Path,
) -> tuple[dict[str, Tensor], dict[str, str]]:
  """Reads and checks a header; the data is not touched.

  Returns:
    (tensors by name, the file's metadata).

  Raises:
    StorageError: the header lies, in any of the ways that are known.
  """
  try:
    with open(path, 'rb') as file:
      size = os.fstat(file.fileno()).st_size
      length = int.from_bytes(file.read(_LENGTH_BYTES), 'little')
      data_start = _LENGTH_BYTES + length
      if (
        size < _LENGTH_BYTES or length > _MAX_HEADER_BYTES or data_start > size
      ):
        raise StorageError(
          f'{path} is no safetensors file, or is cut short: its header should '
          f'take {length} bytes, the file has {size}'
        )
      text = file.read(length)
  except OSError as error:
    raise StorageError(f'{path} can not be read: {error.strerror}') from error
  entries = _parse(path, text)
  metadata = entries.pop(_METADATA, {})
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise StorageError(f'{path}: {_METADATA} must map names to strings')
  tensors = [
    _tensor(path, name, entry, data_start) for name, entry in entries.items()
  ]
  _check_cover(path, tensors, data_start, size)
  return {tensor.name: tensor for tensor in tensors}, metadata


def parse_json(path: pathlib.Path, text: bytes) -> Any:
  """Parses JSON in which no object has a key twice.

  Raises:
    StorageError: it is broken, too deep, or a key is there twice; it is named.
  """

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
      [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
      raise StorageError(f'{path} lists {twice[:80]!r} twice')
    return result

  try:
    return json.loads(text.decode('utf-8'), object_pairs_hook=unique)
  except StorageError:
    raise
  except (ValueError, RecursionError) as error:
    raise StorageError(f'{path} holds no valid JSON ({error})') from error


def _parse(path: pathlib.Path, text: bytes) -> dict[str, Any]:
  entries = parse_json(path, text)
  if not isinstance(entries, dict):
    raise StorageError(f'{path}: the header is no JSON object')
  return entries


def _tensor(
  path: pathlib.Path, name: str, entry: Any, data_start: int
) -> Tensor:
  def refuse(what: str):
    raise StorageError(f'{path}: tensor {name[:80]!r} {what}')

  if not _NAME.fullmatch(name):
    refuse('has a name of other characters than letters, digits and _ . -')
  if not isinstance(entry, dict) or set(entry) != {
    'dtype',
    'shape',
    'data_offsets',
  }:
    refuse('has other fields than dtype, shape and data_offsets')
  dtype, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
  if not isinstance(dtype, str) or (
    dtype not in DTYPES and dtype not in _OTHER_DTYPES
  ):
    refuse(f'has the unknown dtype {reprlib.repr(dtype)}')
  if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
    refuse('has a shape or offsets that are no lists of sizes')
  tensor = Tensor(path, name, dtype, tuple(shape), data_start + offsets[0])
  if offsets[1] - offsets[0] != tensor.num_bytes:
    refuse(
      f'of {dtype} {shape} takes {tensor.num_bytes} bytes, its offsets span '
      f'{offsets[1] - offsets[0]}'
    )
  return tensor


def _sizes(values: Any) -> bool:
  return (
    isinstance(values, list)
    and len(values) <= _MAX_AXES
    and all(type(value) is int and 0 <= value < _MAX_SIZE for value in values)
  )


def _check_cover(
  path: pathlib.Path, tensors: Sequence[Tensor], data_start: int, size: int
) -> None:
  """The tensors lie end to end and fill the file: no hole, no overlap."""
  position = data_start
  for tensor in sorted(tensors, key=lambda t: (t.start, t.num_bytes)):
    if tensor.start != position:
      kind = 'a hole before' if tensor.start > position else 'bytes shared by'
      raise StorageError(f'{path} has {kind} tensor {tensor.name!r}')
    position += tensor.num_bytes
  if position != size:
    raise StorageError(
      f'{path} has {size} bytes, its header describes {position}: it is cut '
      'short or has bytes that belong to no tensor'
    )


class Files:
  """Open files, read by ranges; safe to use from several threads."""

  def __init__(self):
    self._open: dict[pathlib.Path, int] = {}
    self._lock = threading.Lock()
    self._scratch: np.ndarray | None = None
    self.bytes_read = 0

  def __enter__(self) -> 'Files':
    return self

  def __exit__(self, *unused) -> None:
    for descriptor in self._open.values():
      os.close(descriptor)
    self._open.clear()

  def read_into(self, tensor: Tensor, offset: int, out: memoryview) -> None:
    """Fills `out` with a tensor's bytes from `offset` on.

    Raises:
      StorageError: the file ends too early, or can't be read.
    """
    position, done = tensor.start + offset, 0
    try:
      descriptor = self._descriptor(tensor.file)
      while done < len(out):
        count = os.preadv(descriptor, [out[done:]], position + done)
        if not count:
          raise StorageError(
            f'{tensor.file} ends inside tensor {tensor.name!r}'
          )
        done += count
    except OSError as error:
      raise StorageError(
        f'{tensor.file} can not be read: {error.strerror}'
      ) from error
    with self._lock:
      self.bytes_read += done

  def _descriptor(self, path: pathlib.Path) -> int:
    with self._lock:
      if path not in self._open:
        self._open[path] = os.open(path, os.O_RDONLY)
      return self._open[path]

  def rows(self, tensor: Tensor, first: int, last: int) -> np.ndarray:
    """Rows [first, last) of a tensor, in its stored dtype."""
    shape = (last - first, *tensor.shape[1:])
    out = np.empty(shape, DTYPES[tensor.dtype])
    view = memoryview(out.reshape(-1).view(np.uint8))
    offset = first * math.prod(tensor.shape[1:]) * itemsize(tensor.dtype)
    self.read_into(tensor, offset, view)
    return out

  def blocks(self, tensor: Tensor) -> Iterator[memoryview]:
    """All bytes of a tensor, in blocks; each is gone when the next is asked."""
    if self._scratch is None:
      # One for all: fresh memory would cost a page fault for every page.
      self._scratch = np.empty(BLOCK_BYTES, np.uint8)
    total = tensor.num_bytes
    for offset in range(0, total, BLOCK_BYTES):
      block = memoryview(self._scratch)[: min(BLOCK_BYTES, total - offset)]
      self.read_into(tensor, offset, block)
      yield block

  def copy(self, tensor: Tensor, target: int) -> None:
    """Appends all bytes of a tensor to an open file, inside the kernel.

    Raises:
      StorageError: the source ends too early.
      OSError: the target can't take them.
    """
    source, position = self._descriptor(tensor.file), tensor.start
    end = tensor.start + tensor.num_bytes
    while position < end:
      try:
        count = os.copy_file_range(source, target, end - position, position)
      except (AttributeError, OSError) as error:  # macOS has no such call.
        known = getattr(error, 'errno', None) in (None, *_NO_KERNEL_COPY)
        if not known or position != tensor.start:
          raise
        for block in self.blocks(tensor):
          _write_all(target, block)
        return
      if not count:
        raise StorageError(f'{tensor.file} ends inside tensor {tensor.name!r}')
      position += count
    self.bytes_read += tensor.num_bytes


@dataclasses.dataclass(frozen=True)
class Entry:
  """A tensor that will be written: its name, dtype and shape."""

  name: str
  dtype: str
  shape: tuple[int, ...]

  @property
  def num_bytes(self) -> int:
    return math.prod(self.shape) * itemsize(self.dtype)


def header(entries: Iterable[Entry], metadata: dict[str, str]) -> bytes:
  """The bytes before the data; padded so that the data starts on a page."""
  fields: dict[str, Any] = {_METADATA: metadata}
  position = 0
  for entry in entries:
    end = position + entry.num_bytes
    fields[entry.name] = {
      'dtype': entry.dtype,
      'shape': list(entry.shape),
      'data_offsets': [position, end],
    }
    position = end
  text = json.dumps(fields, separators=(',', ':')).encode()
  text += b' ' * (-(_LENGTH_BYTES + len(text)) % _PAGE)
  return len(text).to_bytes(_LENGTH_BYTES, 'little') + text


def write(
  path: pathlib.Path,
  entries: Sequence[Entry],
  parts: Iterable[memoryview | Tensor],
  metadata: dict[str, str],
  files: Files | None = None,
  hashed: bool = True,
) -> str:
  """Writes `<path>.tmp`, block by block; `commit` gives it its name.

  Args:
    path: the file.
    entries: what it holds.
    parts: the data of all entries, end to end: bytes, or tensors of other
      files whose bytes are taken.
    metadata: strings by name.
    files: reads those tensors.
    hashed: whether the SHA-256 is wanted; without, bytes of other files are
      copied inside the kernel.

  Returns:
    The file's SHA-256, in hexadecimal, or ''.

  Raises:
    StorageError: the disk refused; nothing is left behind.
  """
  temporary = _temporary(path)
  start = header(entries, metadata)
  expected = len(start) + sum(entry.num_bytes for entry in entries)
  try:
    with open(temporary, 'wb', buffering=0) as file:
      sink = _HashingSink(file.fileno()) if hashed else _Sink(file.fileno())
      with sink:
        sink.put(memoryview(start))
        for part in parts:
          if isinstance(part, Tensor):
            sink.take(files, part)
          else:
            sink.put(part)
      written = file.tell()
    if written != expected:
      raise StorageError(f'{path}: {written} bytes written, not {expected}')
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise _refused(path, error) from error
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  return sink.digest()


def commit(path: pathlib.Path) -> None:
  """Makes a written file durable and gives it its name.

  Raises:
    StorageError: the disk refused; nothing is left behind.
  """
  temporary = _temporary(path)
  try:
    with open(temporary, 'rb') as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise _refused(path, error) from error


def _temporary(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'{path.name}.tmp')


def _refused(path: pathlib.Path, error: OSError) -> StorageError:
  return StorageError(
    f'{path} can not be written: {error.strerror}; make room or choose another '
    'folder, and give the same command again'
  )


class _Sink:
  """An open file that takes bytes."""

  def __init__(self, descriptor: int):
    self.descriptor = descriptor

  def __enter__(self):
    return self

  def __exit__(self, *unused) -> None:
    pass

  def put(self, block: memoryview) -> None:
    _write_all(self.descriptor, block)

  def take(self, files: Files, tensor: Tensor) -> None:
    files.copy(tensor, self.descriptor)

  def digest(self) -> str:
    return ''


class _HashingSink(_Sink):
  """The same; while a block is written it is hashed, and the next one read."""

  def __init__(self, descriptor: int):
    super().__init__(descriptor)
    self._hash = hashlib.sha256()
    self._hasher = concurrent.futures.ThreadPoolExecutor(1)
    self._reader = concurrent.futures.ThreadPoolExecutor(1)
    self._buffers = [np.empty(_COPY_BYTES, np.uint8) for _ in range(2)]
    self._read: tuple[concurrent.futures.Future, memoryview] | None = None

  def __exit__(self, kind, *unused) -> None:
    if kind is None:
      self._drain()
    self._hasher.shutdown()
    self._reader.shutdown()

  def put(self, block: memoryview) -> None:
    self._drain()
    self._write(block)

  def take(self, files: Files, tensor: Tensor) -> None:
    for offset in range(0, tensor.num_bytes, _COPY_BYTES):
      size = min(_COPY_BYTES, tensor.num_bytes - offset)
      block = memoryview(self._buffers[0])[:size]
      self._buffers.reverse()
      read = self._reader.submit(files.read_into, tensor, offset, block)
      self._drain()
      self._read = read, block

  def _drain(self) -> None:
    """Writes the block that was read last."""
    if self._read is not None:
      (read, block), self._read = self._read, None
      read.result()
      self._write(block)

  def _write(self, block: memoryview) -> None:
    hashed = self._hasher.submit(self._hash.update, block)
    _write_all(self.descriptor, block)
    hashed.result()

  def digest(self) -> str:
    return self._hash.hexdigest()


def _write_all(descriptor: int, block: memoryview) -> None:
  while len(block):
    block = block[os.write(descriptor, block) :]
