"""Checks of published weights that read their numbers, not only headers."""

from collections.abc import Iterable
import dataclasses
import pathlib

import numpy as np

from seekax.storage import names
from seekax.storage.manifest import StorageError
from seekax.storage.safetensors_file import BLOCK_BYTES, Files
from seekax.storage.safetensors_header import read_header, Tensor
from seekax.storage.weights import (
  refuse_leaving,
  SINGLE,
  split_fused,
  Tensors,
  two_sets,
)


def check_copies(tensors: Tensors, slots: Iterable[names.Slot]) -> None:
  """Checks that tables stored twice are equal, since only one is used.

  Raises:
    StorageError: they differ.
    StorageError: they are not.
  """
  first: dict[names.Path, Tensor] = {}
  with Files() as files:
    for slot in slots:
      if not slot.is_copy:
        if not slot.index:
          first[slot.path] = tensors[slot.name]
        continue
      copy, main = tensors[slot.name], first[slot.path]
      if not _equal(files, copy, main):
        raise StorageError(
          f'{copy.file}: tensor {copy.name!r} differs from {main.name!r}; an '
          'MTP module with tables of its own is not supported, --mtp=drop '
          'leaves it out'
        )


def check_numbers(tensors: Tensors) -> None:
  """Reads every tensor once to check its values.

  Raises:
    StorageError: one holds NaN, infinity, or a scale that isn't above zero.
  """
  with Files() as files:
    for tensor in sorted(tensors.values(), key=lambda t: (t.file, t.start)):
      for _ in files.blocks(tensor):
        pass


def check_two_sets(folder: pathlib.Path, tensors: Tensors) -> None:
  """Checks that two sets of weights are equal, since only one is used.

  Args:
    folder: folder of the tensors.
    tensors: the tensors that are used.

  Raises:
    StorageError: a tensor in both sets differs, or one can't be read.
  """
  both, single = two_sets(folder, tensors), folder / SINGLE
  if not both:
    return
  refuse_leaving(single)
  others = split_fused(read_header(single)[0])
  with Files() as files:
    for name in sorted(tensors.keys() & others.keys()):
      one, other = tensors[name], others[name]
      if (one.dtype, one.shape) != (other.dtype, other.shape) or not (
        _equal(files, one, other)
      ):
        raise StorageError(
          f'{both}, which differ in {name!r}; move the wrong one elsewhere'
        )


def _equal(files: Files, one: Tensor, other: Tensor) -> bool:
  """Whether two tensors of one shape have the same values."""
  if not one.shape:
    one, other = (
      dataclasses.replace(tensor, shape=(1,)) for tensor in (one, other)
    )
  row_bytes = max(one.num_bytes // max(one.shape[0], 1), 1)
  step = max(BLOCK_BYTES // row_bytes, 1)
  for start in range(0, one.shape[0], step):
    stop = min(start + step, one.shape[0])
    left, right = (files.rows(t, start, stop) for t in (one, other))
    if one.dtype == other.dtype:
      left, right = left.view(np.uint8), right.view(np.uint8)
    if not np.array_equal(left, right):
      return False
  return True
