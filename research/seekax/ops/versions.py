"""Versions of the optional packages that backends need."""

import importlib.metadata
import importlib.util


def cudnn() -> int:
  """Version of the cuDNN that JAX loaded, e.g. 91002; 0 if there is none."""
  try:
    from jax._src.lib import cuda_versions

    return cuda_versions.cudnn_get_version() if cuda_versions else 0
  except (AttributeError, ImportError, RuntimeError):
    return 0


def tokamax() -> tuple[int, ...]:
  """The version of tokamax, e.g. (0, 0, 17); () if it isn't installed."""
  try:
    text = importlib.metadata.version('tokamax')
  except importlib.metadata.PackageNotFoundError:
    return ()
  numbers = []
  for part in text.split('.'):
    if not part.isdecimal():
      break
    numbers.append(int(part))
  return tuple(numbers)


def has_triton() -> bool:
  """Whether the packages that its Triton kernels need are installed."""
  return all(importlib.util.find_spec(x) for x in ('triton', 'jax_triton'))
