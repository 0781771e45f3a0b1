"""One safetensors file: its checked header, reads of byte ranges, a writer.

A file is eight bytes with a length, a JSON header and raw data. The safetensors
package accepts names such as `../../x` and duplicate keys, and its NumPy
interface has no FP8; so files are read and written here, by ranges and blocks,
never as a whole.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import threading
from typing import NoReturn, TypeGuard

import ml_dtypes
import numpy as np

from seekax.files import (
  check_size,
  JsonObject,
  open_regular,
  parse_json,
  quoted,
  reason,
)
from seekax.storage.finite import check_block, CHUNK
from seekax.storage.manifest import StorageError

# dtype names in safetensors, and the NumPy dtypes.
DTYPES: dict[str, np.dtype] = {
  'F32': np.dtype(np.float32),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
}
# Valid in safetensors, but not the dtype of any weight that is used here.
_OTHER_DTYPES = {'F64': 8, 'F16': 2, 'F8_E5M2': 1, 'F8_E8M0': 1, 'BOOL': 1}
_OTHER_DTYPES |= {
  f'{kind}{bits}': bits // 8 for kind in 'IU' for bits in (8, 16, 32, 64)
}

_LENGTH_BYTES = 8
_PAGE = 4096
_NAME = re.compile(r'[A-Za-z0-9_.\-]{1,512}')
# Larger products of sizes would be slow to compute or too long to print.
_MAX_AXES = 8
_MAX_SIZE = 2**63
_METADATA = '__metadata__'
# Number of bytes in a block of data.
BLOCK_BYTES = 16 << 20
# Number of bytes that are hashed, written and read ahead while in the cache.
_COPY_BYTES = 1 << 20
# Number of files that are open at a time. The usual limit is 1,024; several
# folders may be read at once, and Python and JAX hold some files as well.
_MAX_OPEN = 64


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file.

  Attributes:
    file: the safetensors file.
    name: key in the file.
    dtype: dtype in safetensors' spelling, e.g. BF16.
    shape: published shape, (out, in) for a matrix.
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
  """Number of bytes of one value."""
  known = DTYPES.get(dtype)
  return known.itemsize if known else _OTHER_DTYPES[dtype]


def read_header(
  path: pathlib.Path,
) -> tuple[dict[str, Tensor], dict[str, str]]:
  """Reads and checks a header, without reading the data.

  Returns:
    (tensors by name, the file's metadata).

  Raises:
    StorageError: the header is wrong in any of the known ways.
  """
  descriptor, size = open_regular(path, StorageError)
  with open(descriptor, 'rb') as file:
    try:
      length = int.from_bytes(file.read(_LENGTH_BYTES), 'little')
      data_start = _LENGTH_BYTES + length
      if size < _LENGTH_BYTES or data_start > size:
        raise StorageError(
          f'{path} is no safetensors file, or is cut short: its header should '
          f'take {length} bytes, the file has {size}'
        )
      check_size(path, length, 'a safetensors header', StorageError)
      text = file.read(length)
    except OSError as error:
      raise StorageError(f'{path} can not be read: {reason(error)}') from error
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


def _parse(path: pathlib.Path, text: bytes) -> JsonObject:
  entries = parse_json(path, text, StorageError)
  if not isinstance(entries, dict):
    raise StorageError(f'{path}: the header is no JSON object')
  return entries


def _tensor(
  path: pathlib.Path, name: str, entry: object, data_start: int
) -> Tensor:
  def refuse(what: str) -> NoReturn:
    raise StorageError(f'{path}: tensor {quoted(name)} {what}')

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
    refuse(f'has the unknown dtype {quoted(dtype)}')
  if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
    refuse('has a shape or offsets that are no lists of sizes')
  tensor = Tensor(path, name, dtype, tuple(shape), data_start + offsets[0])
  if offsets[1] - offsets[0] != tensor.num_bytes:
    refuse(
      f'of {dtype} {shape} takes {tensor.num_bytes} bytes, its offsets span '
      f'{offsets[1] - offsets[0]}'
    )
  return tensor


def _sizes(values: object) -> TypeGuard[list[int]]:
  return (
    isinstance(values, list)
    and len(values) <= _MAX_AXES
    and all(type(value) is int and 0 <= value < _MAX_SIZE for value in values)
  )


def _check_cover(
  path: pathlib.Path, tensors: Sequence[Tensor], data_start: int, size: int
) -> None:
  """Checks that the tensors fill the file without holes or overlap."""
  position = data_start
  for tensor in sorted(tensors, key=lambda t: (t.start, t.num_bytes)):
    if tensor.start != position:
      kind = 'a hole before' if tensor.start > position else 'bytes shared by'
      raise StorageError(f'{path} has {kind} tensor {quoted(tensor.name)}')
    position += tensor.num_bytes
  if position != size:
    raise StorageError(
      f'{path} has {size} bytes, its header describes {position}: it is cut '
      'short or has bytes that belong to no tensor'
    )


@dataclasses.dataclass
class _Open:
  """An open file and the number of threads that read it."""

  descriptor: int
  readers: int = 0


class Files:
  """Reads files by ranges and keeps a limited number of them open.

  Several threads may use it; a file that one of them reads stays open.
  """

  def __init__(self):
    # The least recently used file comes first.
    self._open: dict[pathlib.Path, _Open] = {}
    self._lock = threading.Lock()
    self._scratch: np.ndarray | None = None
    self.bytes_read = 0

  def __enter__(self) -> 'Files':
    return self

  def __exit__(self, *unused) -> None:
    for entry in self._open.values():
      os.close(entry.descriptor)
    self._open.clear()

  def read_into(self, tensor: Tensor, offset: int, out: memoryview) -> None:
    """Fills `out` with a tensor's bytes from `offset` on.

    Raises:
      StorageError: the file ends too early or can't be read, or a value isn't
        finite.
    """
    size = itemsize(tensor.dtype)
    for start in range(0, len(out), CHUNK):
      # Values are checked while they are in the cache.
      chunk = out[start : start + CHUNK]
      self.read_unchecked(tensor, offset + start, chunk)
      first = (offset + start) // size
      check_block(
        chunk, tensor.dtype, tensor.name, tensor.file, tensor.shape, first
      )

  def read_unchecked(
    self, tensor: Tensor, offset: int, out: memoryview
  ) -> None:
    """The same, without checking values.

    Raises:
      StorageError: the file ends too early, or can't be read.
    """
    position, done = tensor.start + offset, 0
    try:
      with self._reading(tensor.file) as descriptor:
        while done < len(out):
          count = os.preadv(descriptor, [out[done:]], position + done)
          if not count:
            raise StorageError(
              f'{tensor.file} ends inside tensor {tensor.name!r}'
            )
          done += count
    except OSError as error:
      raise StorageError(
        f'{tensor.file} can not be read: {reason(error)}'
      ) from error
    with self._lock:
      self.bytes_read += done

  @contextlib.contextmanager
  def _reading(self, path: pathlib.Path) -> Generator[int]:
    """Yields a file's descriptor, which stays open meanwhile."""
    with self._lock:
      entry = self._open.pop(path, None)
      if entry is None:
        self._close_idle(_MAX_OPEN - 1)
        entry = _Open(self._opened(path))
      self._open[path] = entry
      entry.readers += 1
    try:
      yield entry.descriptor
    finally:
      with self._lock:
        entry.readers -= 1

  def _opened(self, path: pathlib.Path) -> int:
    try:
      return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
      # The system's limit is lower than ours: fewer open files are slower.
      if error.errno != errno.EMFILE or not self._close_idle(0):
        raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

  def _close_idle(self, keep: int) -> int:
    """Closes unused files until `keep` are left; returns the number closed."""
    idle = [path for path, entry in self._open.items() if not entry.readers]
    surplus = idle[: max(len(self._open) - keep, 0)]
    for path in surplus:
      os.close(self._open.pop(path).descriptor)
    return len(surplus)

  def rows(self, tensor: Tensor, first: int, last: int) -> np.ndarray:
    """Reads rows [first, last) of a tensor in its stored dtype."""
    shape = (last - first, *tensor.shape[1:])
    out = np.empty(shape, DTYPES[tensor.dtype])
    view = memoryview(out.reshape(-1).view(np.uint8))
    offset = first * math.prod(tensor.shape[1:]) * itemsize(tensor.dtype)
    self.read_into(tensor, offset, view)
    return out

  def blocks(self, tensor: Tensor) -> Iterator[memoryview]:
    """Yields a tensor's bytes in blocks; each is valid until the next one."""
    if self._scratch is None:
      # Reused: new memory would cost a page fault for every page.
      self._scratch = np.empty(BLOCK_BYTES, np.uint8)
    total = tensor.num_bytes
    for offset in range(0, total, BLOCK_BYTES):
      block = memoryview(self._scratch)[: min(BLOCK_BYTES, total - offset)]
      self.read_into(tensor, offset, block)
      yield block

  def copy(self, tensor: Tensor, target: int) -> None:
    """Appends all bytes of a tensor to an open file.

    The values are checked, so copying inside the kernel would read them twice;
    in blocks of the cache's size this is faster.

    Raises:
      StorageError: the source ends too early, or a value isn't finite.
      OSError: the target can't take them.
    """
    block = memoryview(bytearray(CHUNK))
    for offset in range(0, tensor.num_bytes, CHUNK):
      part = block[: tensor.num_bytes - offset]
      self.read_into(tensor, offset, part)
      _write_all(target, part)


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
  """The bytes before the data, padded so that the data starts on a page."""
  fields: JsonObject = {_METADATA: metadata}
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
  """Writes `<path>.tmp`, block by block; `commit` renames it to `path`.

  Args:
    path: the file.
    entries: the tensors that it will hold.
    parts: the data of all entries, end to end: bytes, or tensors of other files
      whose bytes are copied.
    metadata: metadata strings by name.
    files: reads those tensors.
    hashed: whether to compute the SHA-256; writing is faster without.

  Returns:
    The file's SHA-256, in hexadecimal, or ''.

  Raises:
    StorageError: the disk can't take it; the temporary file is deleted.
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
            assert files is not None
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
  """Flushes a written file to the disk and gives it its final name.

  Raises:
    StorageError: the disk can't take it; the temporary file is deleted.
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
  advice = (
    '; make room or choose another folder, and give the same command again'
  )
  if error.errno in (errno.EMFILE, errno.ENFILE):
    advice = ''
  return StorageError(f'{path} can not be written: {reason(error)}{advice}')


class _Sink:
  """An open file that bytes are written to."""

  def __init__(self, descriptor: int):
    self.descriptor = descriptor

  def __enter__(self):
    return self

  def __exit__(self, kind, *unused) -> None:
    pass

  def put(self, block: memoryview) -> None:
    _write_all(self.descriptor, block)

  def take(self, files: Files, tensor: Tensor) -> None:
    files.copy(tensor, self.descriptor)

  def digest(self) -> str:
    return ''


class _HashingSink(_Sink):
  """A sink that hashes a block while writing it, and reads the next one."""

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
