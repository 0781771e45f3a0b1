"""Checks that a model can fit in this machine's memory at all.

A config can name any sizes: without this check, a model of two billion experts
would be listed one by one until the memory is full.
"""

import os
import pathlib

import jax

from seekax.configuration.model import ModelConfig
from seekax.files import LIMIT_FACTOR, limit_factor
from seekax.planning.parameters import count_parameters
from seekax.storage import names
from seekax.storage.manifest import StorageError

# For comparison, Kimi-K2 has 70,000.
_MAX_TENSORS = 1_000_000


def check_room(
  model: ModelConfig, value_bytes: int, num_bytes: int | None = None
) -> None:
  """Raises for weights that certainly don't fit, before allocating any.

  Args:
    model: the architecture.
    value_bytes: bytes per weight in memory.
    num_bytes: bytes of all weights, if known more precisely.

  Raises:
    StorageError: they need more than all memory of hosts and devices together.
  """
  counts = count_parameters(model)
  total = counts.total + counts.mtp
  needed = total * value_bytes if num_bytes is None else num_bytes
  there = _memory()
  if there is None or needed <= there * limit_factor():
    return
  raise StorageError(
    f'the model has {total:.3g} parameters, whose weights alone need '
    f'{needed / 1e9:,.3g} GB of memory; hosts and devices have '
    f'{there / 1e9:,.3g} GB: take a smaller model or more devices (seekax plan '
    f'tells how many), or set {LIMIT_FACTOR}=2 if they have more'
  )


def check_count(model: ModelConfig, where: object) -> None:
  """Raises for a model of too many tensors, which would take forever to list.

  Args:
    model: the architecture.
    where: names the model's source, for the error.

  Raises:
    StorageError: it has more tensors than any real model.
  """
  found = names.count(model)
  if found > _MAX_TENSORS * limit_factor():
    raise StorageError(
      f'{where} describes a model of {found:.3g} weights, experts one by one; '
      f'at most {_MAX_TENSORS:,} are read'
    )


def host_memory() -> int:
  """Bytes of this host's memory and swap space."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') + _swap()


def _memory() -> int | None:
  """Bytes of all hosts and devices; None where a device doesn't report its."""
  total = host_memory()
  for device in jax.local_devices():
    if device.platform == 'cpu':
      continue
    limit = (device.memory_stats() or {}).get('bytes_limit')
    if limit is None:
      return None
    total += limit
  return total * jax.process_count()


def _swap() -> int:
  try:
    text = pathlib.Path('/proc/meminfo').read_text(encoding='utf-8')
  except OSError:
    return 0
  for line in text.splitlines():
    if line.startswith('SwapTotal:'):
      return int(line.split()[1]) * 1024
  return 0
