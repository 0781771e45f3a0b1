"""Finds where a run begins: a checkpoint, other weights, or random ones."""

import dataclasses
import json
import pathlib
import shutil

from seekax.configuration.config import Config
from seekax.configuration.model import model_differences
from seekax.data.tokenizer import Tokenizer
from seekax.data.tokenizer_files import load_folder, read_json
from seekax.files import write_atomically
from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib
from seekax.storage.huggingface import GENERATION_CONFIG
from seekax.storage.manifest import StorageError
from seekax.storage.open import find, Found


@dataclasses.dataclass(frozen=True)
class Beginning:
  """Where the first state of this call comes from.

  Attributes:
    step: the checkpoint to go on from; None for a new run.
    sets_aside: whether this older checkpoint was asked for, and later ones are
      out of its way.
    origin: weights that a new run starts from; None for random ones.
  """

  step: int | None = None
  sets_aside: bool = False
  origin: Found | None = None


def find_beginning(
  config: Config, workdir: pathlib.Path, restore_step: int | None
) -> Beginning:
  """Looks where a run begins or goes on.

  Args:
    config: the run.
    workdir: prepared and locked.
    restore_step: the checkpoint that was asked for; None for the newest.

  Raises:
    StorageError: see `find_origin`.
  """
  if restore_step is not None:
    return Beginning(restore_step, sets_aside=True)
  step = checkpoint.newest(workdir / workdir_lib.CHECKPOINTS)
  if step is not None:
    return Beginning(step)
  return Beginning(origin=find_origin(config, workdir))


def find_origin(config: Config, workdir: pathlib.Path) -> Found | None:
  """What the run starts from: `train.init_from`, or a convert target itself.

  Raises:
    StorageError: it holds another model than the config describes.
  """
  path = config.train.init_from
  if not path:
    if not workdir_lib.has_weights(workdir):
      return None
    path = workdir  # A convert target is a workdir at step 0.
  origin = find(path, drop_mtp=not config.model.mtp_depth)
  differences = model_differences(
    origin.model, config.model, extended=config.train.extend_context
  )
  if differences:
    hint = ''
    if not model_differences(origin.model, config.model, extended=True):
      hint = '; train.extend_context=True allows for it'
    raise StorageError(
      f'{path} holds another model than the config describes: '
      + '; '.join(differences)
      + hint
    )
  return origin


def find_tokenizer(
  config: Config, workdir: pathlib.Path, origin: Found | None
) -> Tokenizer | None:
  """The tokenizer that the run's weights know; None if they know none.

  Raises:
    DataError: it can't be used.
  """
  if workdir_lib.has_checkpoint(workdir) and _has_one(workdir):
    return load_folder(workdir)
  if origin is None or config.data.tokenizer or not _has_one(origin.folder):
    return None
  return origin.tokenizer()


def keep_tokenizer(
  workdir: pathlib.Path, origin: Found | None, tokenizer: Tokenizer
) -> None:
  """Puts the run's tokenizer, and what goes with it, into its workdir."""
  if origin is not None and origin.folder.resolve() == workdir.resolve():
    return
  tokenizer.save(workdir / workdir_lib.TOKENIZER)
  if origin is None or not _has_one(origin.folder):
    return
  if load_folder(origin.folder).to_json() != tokenizer.to_json():
    return
  for name in workdir_lib.TOKENIZER_COMPANIONS:
    if (origin.folder / name).is_file():
      shutil.copyfile(origin.folder / name, workdir / name)
  # A workdir has no other place for the ends that its config.json names.
  path = workdir / GENERATION_CONFIG
  fields = read_json(path) | {'eos_token_id': list(origin.end_ids())}
  write_atomically(path, json.dumps(fields, indent=2) + '\n')


def _has_one(folder: pathlib.Path) -> bool:
  return (folder / workdir_lib.TOKENIZER).is_file()
