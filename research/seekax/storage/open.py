"""What a --checkpoint is: a workdir, of which the newest proven step counts."""

import dataclasses
import pathlib
from typing import Any

import jax

from seekax.config import Config
from seekax.data.tokenizer import load as load_tokenizer
from seekax.data.tokenizer import Tokenizer
from seekax.model.parameters import abstract_weights
from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import StorageError


@dataclasses.dataclass(frozen=True)
class Opened:
  """A model that can be run.

  Attributes:
    config: of the run that made it.
    step: optimizer steps it was trained for.
    params: float32 weights.
    router_bias: selection biases.
    folder: where it was found.
  """

  config: Config
  step: int
  params: Any
  router_bias: dict[str, jax.Array]
  folder: pathlib.Path

  def tokenizer(self) -> Tokenizer:
    """The tokenizer beside the weights.

    Raises:
      StorageError: there is none.
    """
    path = self.folder / workdir_lib.TOKENIZER
    if not path.is_file():
      raise StorageError(
        f'{self.folder} has no {workdir_lib.TOKENIZER}; text needs one, token '
        'ids can still be scored with --tokens'
      )
    return load_tokenizer(path)


def newest_step(folder: pathlib.Path) -> int:
  """The newest proven step of a workdir.

  Raises:
    StorageError: the folder isn't there or holds no proven checkpoint.
  """
  if not folder.is_dir():
    raise StorageError(
      f'checkpoint {folder} does not exist; give the --workdir of a training '
      'run'
    )
  workdir_lib.read_run(folder)
  step = checkpoint.newest(folder / workdir_lib.CHECKPOINTS)
  if step is None:
    raise StorageError(
      f'{folder} holds no finished checkpoint yet; train on with: seekax train '
      f'--workdir={folder}'
    )
  return step


def open_checkpoint(path: str) -> Opened:
  """Loads weights and router bias, without the optimizer.

  Raises:
    StorageError: nothing usable is there, or it fails its checksums.
  """
  folder = pathlib.Path(path)
  step = newest_step(folder)
  config = workdir_lib.read_config(folder)
  parts, _ = checkpoint.restore(
    folder / workdir_lib.CHECKPOINTS,
    step,
    {'weights': abstract_weights(config.model)},
  )
  weights = parts['weights']
  return Opened(config, step, weights['params'], weights['router_bias'], folder)
