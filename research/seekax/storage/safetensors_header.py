"""The header of a safetensors file: checked when read, laid out when written.

A file is eight bytes with a length, a JSON header and raw data. The safetensors
package accepts names such as `../../x` and duplicate keys, so headers are read
here.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import math
import pathlib
import re
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
