"""Training states on disk: orbax checkpoints, verified by a manifest.

`checkpoints/<step>/` is written and committed by orbax; only then
`checkpoints/<step>.sha256` is written. A step without its manifest counts as
unfinished. This is the only module that knows orbax.
"""

from collections.abc import Generator
import contextlib
import hashlib
import logging as std_logging
import pathlib
import re
import shutil
import warnings

from absl import logging
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from seekax.arrays import PyTree
from seekax.files import check_size, JsonObject, reason
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
# Orbax aborts a save after 20 minutes by the wall clock, which may jump; it is
# better to wait for a slow disk.
_SAVE_SECONDS = 10**8
# Small leaves are read together, up to this size.
_LEAST_READ_BYTES = 64 << 20
# The parts of a state that are weights; other parts may hold infinity.
WEIGHTS, AVERAGE = 'weights', 'ema'
# Limit of memory for checking the numbers of a state, unless a leaf needs more.
_CHECKED_BYTES = 1 << 30
# A leaf that takes a larger share of the memory isn't checked.
_MOST_OF_MEMORY = 0.5
# Number of characters that are shown of an orbax error.
_SHOWN = 200
_MOST_CAUSES = 20


def manifest_path(folder: pathlib.Path, step: int) -> pathlib.Path:
  """Path of the manifest that proves a step."""
  return folder / f'{step}.sha256'


def proven_steps(folder: pathlib.Path) -> list[int]:
  """Steps that have a manifest, oldest first."""
  if not folder.is_dir():
    return []
  steps = [int(p.stem) for p in folder.glob('*.sha256') if p.stem.isdecimal()]
  return sorted(step for step in steps if (folder / str(step)).is_dir())


def unproven_steps(folder: pathlib.Path) -> list[int]:
  """Steps without a manifest: saves that were interrupted."""
  if not folder.is_dir():
    return []
  steps = {int(p.name) for p in folder.iterdir() if _is_checkpoint(p)}
  return sorted(steps - set(proven_steps(folder)))


def _is_checkpoint(path: pathlib.Path) -> bool:
  """Whether orbax wrote this folder: only then may it be deleted, replaced."""
  return (
    path.name.isdecimal()
    and path.is_dir()
    and any((path / mark).is_file() for mark in _MARKS)
  )


def save(
  folder: pathlib.Path,
  step: int,
  parts: dict[str, PyTree],
  progress: JsonObject,
) -> None:
  """Saves a state and proves it with a manifest.

  Args:
    folder: the workdir's folder of checkpoints.
    step: number of the step, which names the checkpoint.
    parts: trees of arrays by name; each can be restored alone.
    progress: JSON that is saved with it (data position, seconds so far).

  Raises:
    StorageError: the disk can't take it; older checkpoints are untouched.
  """
  folder = folder.absolute()  # Orbax needs an absolute path.
  target = folder / str(step)
  first = processes.is_first()
  _check_room(folder, parts)
  try:
    if first and target.exists():
      if not _is_checkpoint(target):
        raise StorageError(
          f'{target} is in the way of a checkpoint and is not one; move it away'
        )
      # An interrupted save of the same step is renamed; `clean` deletes it.
      aside = folder / f'{step}{_UNPROVEN}'
      shutil.rmtree(aside, ignore_errors=True)
      target.rename(aside)
    processes.wait_for_all(f'{step} can be saved')
    context = ocp.Context()
    context.asynchronous.timeout_secs = _SAVE_SECONDS
    with context, held_back(logging.get_absl_logger()):
      ocp.save_checkpointables(str(target), parts, custom_metadata=progress)
    if first:
      write_manifest(target, manifest_path(folder, step))
    processes.wait_for_all(f'{step} is proven')
  except (OSError, ValueError) as error:  # orbax: ValueError for a full disk.
    raise StorageError(
      f'checkpoint {target} could not be saved: {_brief(error)}; older '
      'checkpoints are untouched'
    ) from error


def _check_room(folder: pathlib.Path, parts: dict[str, PyTree]) -> None:
  """Raises StorageError if a state certainly doesn't fit on the disk.

  Orbax would find out halfway and print pages of its threads' tracebacks.
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

  An unproven step is only deleted once a newer proven one exists, and a folder
  that orbax didn't write never is.
  """
  proven = proven_steps(folder)
  for step in proven[:-keep]:
    # The manifest goes first, then the name, so that what is left of a
    # half-deleted step is unproven and recognised as ours.
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
  """The newest proven step, or None; logs which newer ones are skipped."""
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
      # Orbax reads these whole; arrays are in files named by numbers.
      if path.name.startswith('_') and path.is_file():
        size = path.stat().st_size
        check_size(path, size, 'metadata of a checkpoint', StorageError)
    verify_manifest(folder / str(step), manifest_path(folder, step))
  except StrayFileError:
    raise  # The state is complete.
  except StorageError as error:
    older = [proven for proven in proven_steps(folder) if proven < step]
    fix = f'start anew in another folder than {folder.parent}'
    if older:
      fix = f'go on from step {older[-1]} with --restore=previous'
    raise StorageError(f'{error}; restore the file, or {fix}') from error


def read_progress(folder: pathlib.Path, step: int) -> JsonObject:
  """Reads what a checkpoint keeps beside the state.

  Raises:
    StorageError: it can't be read.
  """
  path = folder.absolute() / str(step)
  with _loading(folder, step):
    found = ocp.checkpointables_metadata(str(path)).custom_metadata
  if not isinstance(found, dict):
    raise StorageError(
      f'checkpoint {path} can not be loaded: its custom_metadata is no JSON '
      'object'
    )
  return found


@contextlib.contextmanager
def _loading(folder: pathlib.Path, step: int) -> Generator[None]:
  """Turns any error of orbax about a checkpoint into one line.

  A damaged or forged file may cause any error, of thousands of characters, and
  more of them in threads.
  """
  # Even a load that succeeds may have cancelled the reading of other parts.
  std_logging.getLogger('asyncio').addFilter(forget_given_up)
  try:
    with held_back(logging.get_absl_logger(), with_warnings=True):
      yield
  except StorageError:
    raise
  except Exception as error:
    # Orbax's cancelled coroutines would cause warnings.
    warnings.filterwarnings('ignore', "coroutine '", RuntimeWarning)
    verify(folder, step)  # Names a file that was changed.
    path = folder.absolute() / str(step)
    raise StorageError(
      f'checkpoint {path} can not be loaded: {_culprit(path, error)}'
    ) from error


def set_aside(folder: pathlib.Path, step: int) -> list[int]:
  """Makes all later steps unproven, and returns them."""
  later = [proven for proven in proven_steps(folder) if proven > step]
  for proven in later:
    manifest_path(folder, proven).unlink()
  return later


def restore(
  folder: pathlib.Path, step: int, abstract_parts: dict[str, PyTree]
) -> tuple[dict[str, PyTree], JsonObject]:
  """Verifies a checkpoint and loads the given parts.

  Args:
    folder: the workdir's folder of checkpoints.
    step: a proven step.
    abstract_parts: shapes and dtypes of the parts, with shardings if there
      are several devices.

  Returns:
    (parts, progress).

  Raises:
    StorageError: a file doesn't match its hash, or the state the config.
  """
  verify(folder, step)
  path = folder.absolute() / str(step)
  with _loading(folder, step):
    parts = ocp.load_checkpointables(
      str(path), jax.tree.map(_with_sharding, abstract_parts)
    )
  for part in {WEIGHTS, AVERAGE} & parts.keys():
    check_tree(parts[part], f'checkpoint {path}', part)
  return parts, read_progress(folder, step)


def restore_some(
  folder: pathlib.Path, step: int, part: str, abstract: PyTree
) -> PyTree:
  """Loads some leaves of a part; call `verify` first.

  Beside the result, the memory holds at most the size of the largest leaf.

  Args:
    folder: the workdir's folder of checkpoints.
    step: a proven step.
    part: name of the part.
    abstract: shapes and dtypes of the leaves to load, nested as stored.
  """
  path = folder.absolute() / str(step)
  context = ocp.Context()
  context.pytree.loading.partial_load = True
  largest = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
  context.memory.read_concurrent_bytes = max(largest, _LEAST_READ_BYTES)
  with _loading(folder, step), context:
    wanted = {part: jax.tree.map(_with_sharding, abstract)}
    found = ocp.load_checkpointables(str(path), wanted)[part]
  if part in (WEIGHTS, AVERAGE):
    check_tree(found, f'checkpoint {path}', part)
  return found


def check_numbers(
  folder: pathlib.Path, step: int, part: str, abstract: PyTree
) -> None:
  """Reads all leaves of a part, some at a time; call `verify` first.

  Raises:
    StorageError: a leaf can't be read, or holds NaN or infinity.
  """
  some: dict[str, PyTree] = {}
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
  """The file that an error or its causes name; else the error's message."""
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
  # The innermost file is the most precise.
  name, kind = max(found, key=lambda pair: pair[0].count('/'))
  return f'{name} is damaged or forged ({kind})'


def _brief(error: BaseException) -> str:
  """The beginning of an error's message."""
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


def state_hash(tree: PyTree) -> str:
  """SHA-256 over every leaf's path, dtype, shape and bytes, in path order."""
  digest = hashlib.sha256()
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  named = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
  for name, leaf in sorted(named, key=lambda pair: pair[0]):
    array = np.ascontiguousarray(leaf)
    digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
