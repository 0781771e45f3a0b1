"""Reads token ids from an untrusted .npy file.

NumPy would allocate any size that a header of a hundred bytes claims, and a
header of nested brackets overflows the interpreter's stack.
"""

import ast
import math
import pathlib
from typing import BinaryIO

import numpy as np

from seekax.configuration.errors import InputError
from seekax.files import check_size, JsonObject, open_regular, quoted, reason

_MAGIC = b'\x93NUMPY'
# Number of bytes of the header's length field, by format version.
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
# NumPy's own header for two axes has 118.
_MAX_HEADER_BYTES = 1000
_MAX_SIZE = 2**63
_DTYPES = [
  f'{order}{kind}{size}' for order in '<>' for kind in 'iu' for size in '1248'
]


def read_token_ids(path: str | pathlib.Path, flag: str = '') -> np.ndarray:
  """Reads integers [B, L].

  Args:
    path: a .npy file.
    flag: the flag that the user gave it with, for errors.

  Raises:
    InputError: it isn't a .npy file, or its header is wrong.
  """
  where = f'{flag}={path}' if flag else str(path)
  descriptor, size = open_regular(path)
  with open(descriptor, 'rb') as file:
    try:
      fields = _header(where, file)
      shape, dtype, by_columns = _checked(where, fields)
      start = file.tell()
      needed = math.prod(shape) * dtype.itemsize
      if size - start != needed:
        raise InputError(
          f'{where} is no .npy array: its header promises {needed:,} bytes of '
          f'{dtype} {list(shape)}, {size - start:,} are there'
        )
      check_size(path, size, 'token ids')
      data = bytearray(needed)
      if file.readinto(data) != needed:
        raise InputError(f'{where} became shorter while it was read')
    except OSError as error:
      raise InputError(f'{where} can not be read: {reason(error)}') from error
  order = 'F' if by_columns else 'C'
  array = np.frombuffer(data, dtype).reshape(shape, order=order)
  return array.astype(dtype.newbyteorder('='), copy=False)


def _header(where: str, file: BinaryIO) -> JsonObject:
  """Reads the header, a Python dict; the file is then at the data."""
  magic = file.read(len(_MAGIC) + 2)
  count = _LENGTH_BYTES.get(magic[-2]) if len(magic) > len(_MAGIC) else None
  if not magic.startswith(_MAGIC) or count is None:
    raise InputError(f'{where} is no .npy array of a known version')
  length = int.from_bytes(file.read(count), 'little')
  if length > _MAX_HEADER_BYTES:
    raise InputError(
      f'{where} is no .npy array [B, L]: its header should take {length:,} '
      'bytes'
    )
  try:
    fields = ast.literal_eval(file.read(length).decode('latin1').strip())
  except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
    raise InputError(f'{where} is no .npy array: its header is broken') from (
      error
    )
  if not isinstance(fields, dict) or set(fields) != {
    'descr',
    'fortran_order',
    'shape',
  }:
    raise InputError(f'{where} is no .npy array: its header lacks a field')
  return fields


def _checked(
  where: str, fields: JsonObject
) -> tuple[tuple[int, int], np.dtype, bool]:
  """Returns (shape, dtype, is column-major) of integers [B, L]."""
  descr, shape, order = (
    fields[name] for name in ('descr', 'shape', 'fortran_order')
  )
  sizes = isinstance(shape, tuple) and all(
    type(size) is int and 0 < size < _MAX_SIZE for size in shape
  )
  if isinstance(descr, str) and descr[:1] == '|':
    descr = f'<{descr[1:]}'  # A single byte has no byte order.
  known = isinstance(descr, str) and descr in _DTYPES
  if not known or not sizes or len(shape) != 2 or not isinstance(order, bool):
    raise InputError(
      f'{where} is {quoted(descr)} {quoted(shape)}; integers [B, L] are wanted'
    )
  return shape, np.dtype(descr), order
