"""Finds values that aren't finite numbers, and scales that can't scale.

The check reads a number's bits: as integers, NaN and infinity are larger than
all others, once among the positive and once among the negative ones. Two maxima
of a block in the cache take a twentieth of the time to read it.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from seekax.arrays import Array, PyTree
from seekax.storage.fp8 import SCALE_SUFFIX
from seekax.storage.manifest import StorageError


class NotFiniteError(StorageError):
  """Weights that aren't finite numbers."""

  exit_code = 3


# Number of bytes that are checked together; they fit into a core's cache.
CHUNK = 1 << 20
# dtype -> (signed, unsigned, the lowest positive bits that aren't finite).
_BITS = {
  'F32': (np.int32, np.uint32, 0x7F80_0000),
  'BF16': (np.int16, np.uint16, 0x7F80),
  'F8_E4M3': (np.int8, np.uint8, 0x7F),
}
_NAMES = {
  np.dtype(np.float32): 'F32',
  np.dtype(ml_dtypes.bfloat16): 'BF16',
}
_VALUES = {
  'F32': np.dtype(np.float32),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
}


def first_bad(raw: memoryview | np.ndarray, dtype: str, name: str) -> int:
  """Position of the first value that isn't finite; -1 if all are.

  Args:
    raw: the bytes of whole values.
    dtype: dtype in safetensors' spelling; other dtypes aren't checked.
    name: name of the tensor; scales must also be above zero.
  """
  if dtype not in _BITS or not len(raw):
    return -1
  signed, unsigned, bad = _BITS[dtype]
  positive = np.frombuffer(raw, signed)
  negative = positive.view(unsigned)
  is_scale = name.endswith(SCALE_SUFFIX) and dtype == 'F32'
  sign = bad + np.iinfo(signed).max + 1
  lowest = 1 if is_scale else np.iinfo(signed).min
  if positive.max() < bad and (
    positive.min() >= lowest if is_scale else negative.max() < sign
  ):
    return -1
  wrong = (positive >= bad) | (negative >= sign) | (positive < lowest)
  return int(wrong.argmax())


def check_block(
  raw: memoryview | np.ndarray,
  dtype: str,
  name: str,
  where: object,
  shape: tuple[int, ...],
  first: int,
) -> None:
  """Raises for a block of a tensor that holds a value that isn't finite.

  Args:
    raw: the block's bytes.
    dtype: dtype of the tensor.
    name: name of the tensor.
    where: the file or folder that holds it.
    shape: shape of the tensor.
    first: position of the block's first value in the tensor.

  Raises:
    NotFiniteError: names the tensor and the position of the first such value.
  """
  at = first_bad(raw, dtype, name)
  if at < 0:
    return
  value = np.frombuffer(raw, _VALUES[dtype])[at]
  flat = first + at
  index = [int(i) for i in np.unravel_index(flat, shape)] if shape else []
  kind = 'scale' if name.endswith(SCALE_SUFFIX) else 'value'
  raise NotFiniteError(
    f'{where}: tensor {name!r} holds the {kind} {float(value)} at {index}, '
    'which is no weight; get these weights anew, or those of an earlier step'
  )


def check_tree(tree: PyTree, where: object, name: str = '') -> None:
  """Raises for arrays that hold NaN or infinity; checks this process's parts.

  Args:
    tree: arrays of weights.
    where: the file or folder that they were read from.
    name: name of the tree.

  Raises:
    NotFiniteError: names the first such array.
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    words = jax.tree_util.keystr(path, simple=True, separator='/')
    full = f'{name}/{words}' if name and words else name or words
    if not isinstance(leaf, jax.Array):
      _check_array(leaf, full, where, ())
      continue
    # One of several equal copies on different devices is enough.
    parts = {str(shard.index): shard for shard in leaf.addressable_shards}
    for shard in parts.values():
      _check_array(shard.data, full, where, shard.index)


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
  """One compiled program, which needs no memory for a mask of every value."""
  return jnp.isfinite(array).all()


def _check_array(
  array: Array, name: str, where: object, index: tuple[slice, ...]
) -> None:
  """Checks an array, or the part of one that starts at an index of slices."""
  dtype = _NAMES.get(np.dtype(array.dtype))
  if dtype is None or not array.size:
    return
  if isinstance(array, jax.Array):
    (device,) = array.devices()
    if device.platform != 'cpu' and bool(_all_finite(array)):
      return  # Checked on its device.
  values = np.asarray(array)
  raw = values.reshape(-1).view(np.uint8)
  for start in range(0, len(raw), CHUNK):
    at = first_bad(raw[start : start + CHUNK], dtype, name)
    if at < 0:
      continue
    here = np.unravel_index(start // values.dtype.itemsize + at, values.shape)
    begin = [part.start or 0 for part in index] or [0] * len(here)
    place = [int(i) + offset for i, offset in zip(here, begin, strict=True)]
    raise NotFiniteError(
      f'{where}: {name} holds {float(values[here])} at {place}, which is no '
      'weight; take an earlier step, or weights from elsewhere'
    )
