"""Training states on disk: orbax checkpoints, proved by a manifest.

`checkpoints/<step>/` is written and committed by orbax; only then
`checkpoints/<step>.sha256` is written. A step without its manifest counts as
unfinished. This is the only module that knows orbax.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import logging as std_logging
import pathlib
import re
import shutil
from typing import Any
import warnings

from absl import logging
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from seekax.files import check_size, reason
from seekax.machine import processes
from seekax.storage.finite import check_tree
from seekax.storage.manifest import (
  StorageError,
  StrayFileError,
  verify_manifest,
  write_manifest,
)
from seekax.storage.room import host_memory
from seekax.storage.thread_errors import forget_given_up, held_back

_TEMPORARY = 'orbax-checkpoint-tmp'
# Orbax writes these into every checkpoint.
_MARKS = ('_CHECKPOINT_METADATA', 'orbax.checkpoint', 'commit_success.txt')
_UNPROVEN = '.unproven'
# Orbax ends a save after 20 minutes of the wall clock, which may jump; a slow
# disk is better waited for.
_SAVE_SECONDS = 10**8
# Small leaves are read many at once, up to this.
_LEAST_READ_BYTES = 64 << 20
# Parts of a state that are weights; in others infinity has its place.
WEIGHTS, AVERAGE = 'weights', 'ema'
# As much is in memory while the numbers of a state are looked at, or a leaf.
_CHECKED_BYTES = 1 << 30
# A leaf that takes more than this part of the memory is left alone.
_MOST_OF_MEMORY = 0.5
# What is shown of an error of orbax's.
_SHOWN = 200
_MOST_CAUSES = 20


def manifest_path(folder: pathlib.Path, step: int) -> pathlib.Path:
  """What proves a step."""
  return folder / f'{step}.sha256'


def proven_steps(folder: pathlib.Path) -> list[int]:
  """Steps whose manifest is there, oldest first."""
  if not folder.is_dir():
    return []
  steps = [int(p.stem) for p in folder.glob('*.sha256') if p.stem.isdecimal()]
  return sorted(step for step in steps if (folder / str(step)).is_dir())


def unproven_steps(folder: pathlib.Path) -> list[int]:
  """Steps without a manifest: a save that was interrupted."""
  if not folder.is_dir():
    return []
  steps = {int(p.name) for p in folder.iterdir() if _is_checkpoint(p)}
  return sorted(steps - set(proven_steps(folder)))


def _is_checkpoint(path: pathlib.Path) -> bool:
  """Whether orbax wrote a folder: only then may it be deleted or replaced."""
  return (
    path.name.isdecimal()
    and path.is_dir()
    and any((path / mark).is_file() for mark in _MARKS)
  )


def save(
  folder: pathlib.Path,
  step: int,
  parts: dict[str, Any],
  progress: dict[str, Any],
) -> None:
  """Saves and proves a state.

  Args:
    folder: the workdir's checkpoints.
    step: names the checkpoint.
    parts: trees of arrays by name; each can be restored alone.
    progress: JSON kept with it (data position, seconds so far).

  Raises:
    StorageError: the disk refused; older checkpoints are untouched.
  """
  folder = folder.absolute()  # As orbax wants it.
  target = folder / str(step)
  first = processes.is_first()
  _check_room(folder, parts)
  try:
    if first and target.exists():
      if not _is_checkpoint(target):
        raise StorageError(
          f'{target} is in the way of a checkpoint and is none; move it away'
        )
      # An interrupted save of this very step: out of the way, `clean` takes it.
      aside = folder / f'{step}{_UNPROVEN}'
      shutil.rmtree(aside, ignore_errors=True)
      target.rename(aside)
    processes.wait_for_all(f'{step} can be saved')
    context = ocp.Context()
    context.asynchronous.timeout_secs = _SAVE_SECONDS
    with context, held_back(logging.get_absl_logger()):
      ocp.save_checkpointables(target, parts, custom_metadata=progress)
    if first:
      write_manifest(target, manifest_path(folder, step))
    processes.wait_for_all(f'{step} is proven')
  except (OSError, ValueError) as error:  # orbax: ValueError for a full disk.
    raise StorageError(
      f'checkpoint {target} could not be saved: {_brief(error)}; older '
      'checkpoints are untouched'
    ) from error


def _check_room(folder: pathlib.Path, parts: dict[str, Any]) -> None:
  """Raises StorageError if a state surely doesn't fit on the disk.

  Orbax would find out halfway, with pages of its threads' tracebacks.
  """
  existing = folder
  while not existing.exists():
    existing = existing.parent
  needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts))
  free = shutil.disk_usage(existing).free
  if needed > free:
    raise StorageError(
      f'a checkpoint in {folder} needs {needed / 1e6:,.1f} MB, the disk has '
      f'{free / 1e6:,.1f} MB left; make room, older checkpoints are untouched'
    )


def clean(folder: pathlib.Path, keep: int) -> None:
  """Deletes all but the newest `keep` proven steps, and older leftovers.

  Nothing unproven is deleted before a newer proven step exists, and nothing
  that orbax didn't write.
  """
  proven = proven_steps(folder)
  for step in proven[:-keep]:
    # The manifest first, then the name: what is left of a half-deleted step is
    # unproven, and known as one of ours.
    manifest_path(folder, step).unlink()
    aside = folder / f'{step}{_UNPROVEN}'
    shutil.rmtree(aside, ignore_errors=True)
    (folder / str(step)).rename(aside)
    shutil.rmtree(aside)
  newest = proven[-1] if proven else -1
  for path in folder.iterdir():
    step = path.name.split('.')[0]
    leftover = _TEMPORARY in path.name or path.name.endswith(_UNPROVEN)
    if (
      path.is_dir()
      and (leftover or path.name in map(str, unproven_steps(folder)))
      and (step.isdecimal() and int(step) <= newest)
    ):
      shutil.rmtree(path)


def newest(folder: pathlib.Path) -> int | None:
  """The newest proven step, or None; says which newer ones are skipped."""
  proven = proven_steps(folder)
  for step in unproven_steps(folder):
    if not proven or step > proven[-1]:
      logging.warning(
        'checkpoint %s has no manifest (an interrupted save): skipped',
        folder / str(step),
      )
  return proven[-1] if proven else None


def verify(folder: pathlib.Path, step: int) -> None:
  """Raises StorageError if a file of this step differs from its SHA-256."""
  try:
    for path in sorted((folder / str(step)).rglob('*')):
      # Orbax reads these whole; arrays lie in files named by numbers.
      if path.name.startswith('_') and path.is_file():
        size = path.stat().st_size
        check_size(path, size, 'metadata of a checkpoint', StorageError)
    verify_manifest(folder / str(step), manifest_path(folder, step))
  except StrayFileError:
    raise  # Nothing of the state is lost.
  except StorageError as error:
    older = [proven for proven in proven_steps(folder) if proven < step]
    fix = f'start anew in another folder than {folder.parent}'
    if older:
      fix = f'go on from step {older[-1]} with --restore=previous'
    raise StorageError(f'{error}; restore the file, or {fix}') from error


def read_progress(folder: pathlib.Path, step: int) -> dict[str, Any]:
  """What a checkpoint keeps beside the state.

  Raises:
    StorageError: it can't be read.
  """
  path = folder.absolute() / str(step)
  with _loading(folder, step):
    found = ocp.checkpointables_metadata(path).custom_metadata
  if not isinstance(found, dict):
    raise StorageError(
      f'checkpoint {path} can not be loaded: its custom_metadata is no JSON '
      'object'
    )
  return found


@contextlib.contextmanager
def _loading(folder: pathlib.Path, step: int) -> Iterator[None]:
  """Makes one line of whatever orbax says of a checkpoint that it can't load.

  A damaged or forged file may end in any error, of thousands of characters,
  with more of them from threads.
  """
  # A load that succeeds may have given up parts that nobody asked for.
  std_logging.getLogger('asyncio').addFilter(forget_given_up)
  try:
    with held_back(logging.get_absl_logger(), with_warnings=True):
      yield
  except StorageError:
    raise
  except Exception as error:
    # What orbax had begun besides is given up, and would be complained of.
    warnings.filterwarnings('ignore', "coroutine '", RuntimeWarning)
    verify(folder, step)  # Names the file, if one was changed.
    path = folder.absolute() / str(step)
    raise StorageError(
      f'checkpoint {path} can not be loaded: {_culprit(path, error)}'
    ) from error


def set_aside(folder: pathlib.Path, step: int) -> list[int]:
  """Makes all steps after this one unproven, and returns them."""
  later = [proven for proven in proven_steps(folder) if proven > step]
  for proven in later:
    manifest_path(folder, proven).unlink()
  return later


def restore(
  folder: pathlib.Path, step: int, abstract_parts: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Verifies a checkpoint and loads the parts asked for.

  Args:
    folder: the workdir's checkpoints.
    step: a proven step.
    abstract_parts: shapes and dtypes of the parts, with shardings if there
      are several devices.

  Returns:
    (parts, progress).

  Raises:
    StorageError: a file differs from its hash, or the state from the config.
  """
  verify(folder, step)
  path = folder.absolute() / str(step)
  with _loading(folder, step):
    parts = ocp.load_checkpointables(
      path, jax.tree.map(_with_sharding, abstract_parts)
    )
  for part in {WEIGHTS, AVERAGE} & parts.keys():
    check_tree(parts[part], f'checkpoint {path}', part)
  return parts, read_progress(folder, step)


def restore_some(
  folder: pathlib.Path, step: int, part: str, abstract: Any
) -> Any:
  """Loads some leaves of a part; call `verify` before.

  Beside the result, at most as much as the largest leaf takes is in memory.

  Args:
    folder: the workdir's checkpoints.
    step: a proven step.
    part: name of the part.
    abstract: shapes and dtypes of the leaves wanted, nested as stored.
  """
  path = folder.absolute() / str(step)
  context = ocp.Context()
  context.pytree.loading.partial_load = True
  largest = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
  context.memory.read_concurrent_bytes = max(largest, _LEAST_READ_BYTES)
  with _loading(folder, step), context:
    wanted = {part: jax.tree.map(_with_sharding, abstract)}
    found = ocp.load_checkpointables(path, wanted)[part]
  if part in (WEIGHTS, AVERAGE):
    check_tree(found, f'checkpoint {path}', part)
  return found


def check_numbers(
  folder: pathlib.Path, step: int, part: str, abstract: Any
) -> None:
  """Reads all leaves of a part, some at a time; call `verify` before.

  Raises:
    StorageError: a leaf can't be read, or holds NaN or infinity.
  """
  some: dict[str, Any] = {}
  size = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
    num_bytes = leaf.size * leaf.dtype.itemsize
    if num_bytes > _MOST_OF_MEMORY * host_memory():
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      logging.warning(
        'step %d: the numbers of %s/%s are not looked at, it has %.3g GB',
        *(step, part, name, num_bytes / 1e9),
      )
      continue
    if some and size + num_bytes > _CHECKED_BYTES:
      restore_some(folder, step, part, some)
      some, size = {}, 0
    inner = some
    for entry in path[:-1]:
      inner = inner.setdefault(entry.key, {})
    inner[path[-1].key] = leaf
    size += num_bytes
  if some:
    restore_some(folder, step, part, some)


def _culprit(path: pathlib.Path, error: BaseException) -> str:
  """The file that an error, or what caused it, tells of; else its words."""
  found: list[tuple[str, str]] = []
  first, cause = error, error
  for _ in range(_MOST_CAUSES):
    if cause is None:
      break
    names = re.findall(re.escape(f'{path}/') + r'[\w./-]*\w', str(cause))
    found += [(name, type(cause).__name__) for name in names]
    first = cause
    cause = cause.__cause__ or cause.__context__
  if not found:
    return _brief(first)
  # What is furthest inside tells most.
  name, kind = max(found, key=lambda pair: pair[0].count('/'))
  return f'{name} is damaged or forged ({kind})'


def _brief(error: BaseException) -> str:
  """The first words of an error, however many it has."""
  if isinstance(error, OSError):
    return reason(error)
  words = ' '.join(str(error).split())
  kind = type(error).__name__
  return f'{words[:_SHOWN]} ({kind})' if words else kind


def _with_sharding(x):
  sharding = getattr(x, 'sharding', None) or jax.sharding.SingleDeviceSharding(
    jax.devices()[0]
  )
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def state_hash(tree: Any) -> str:
  """SHA-256 over every leaf's path, dtype, shape and bytes, in path order."""
  digest = hashlib.sha256()
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  named = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
  for name, leaf in sorted(named, key=lambda pair: pair[0]):
    array = np.ascontiguousarray(leaf)
    digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
