"""What a --checkpoint is: a workdir, or a folder of published weights.

`find` looks without loading anything; `open_checkpoint` loads a model.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
import pathlib

import jax
import jax.numpy as jnp

from seekax.arrays import PyTree
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.errors import InputError
from seekax.configuration.model import ModelConfig
from seekax.data.tokenizer import Tokenizer
from seekax.data.tokenizer_files import load_folder, read_json
from seekax.files import JsonObject
from seekax.model.parameters import cast_params
from seekax.model.weights import Weights
from seekax.storage import (
  checkpoint,
  hub,
  huggingface,
  names,
  weight_checks,
  weights,
)
from seekax.storage import workdir as workdir_lib
from seekax.storage.load import load
from seekax.storage.manifest import StorageError, verify_manifest
from seekax.storage.room import check_count, check_room


@dataclasses.dataclass(frozen=True)
class Found:
  """A model on disk, not loaded.

  Attributes:
    folder: where it is.
    config: of the run that made it; for published weights, of the model alone.
    step: optimizer steps it was trained for; None where there are published
      or converted weights instead of a training state.
    published: fields of the published config.json, {} without one.
    tensors: safetensors by name; {} for a training state.
    ignored_from: tensors of this layer and later ones are left alone; 0: none.
    averaged: the weights are the run's exponential moving average.
  """

  folder: pathlib.Path
  config: Config
  step: int | None
  published: JsonObject
  tensors: weights.Tensors
  ignored_from: int = 0
  averaged: bool = False

  @property
  def model(self) -> ModelConfig:
    return self.config.model

  @property
  def part(self) -> str:
    """The part of a training state that holds the weights."""
    return 'ema' if self.averaged else 'weights'

  @property
  def is_workdir(self) -> bool:
    return (self.folder / workdir_lib.RUN).is_file()

  @property
  def tensors_folder(self) -> pathlib.Path:
    """The folder of the safetensors."""
    return self.folder / workdir_lib.WEIGHTS if self.is_workdir else self.folder

  @functools.cached_property
  def comparison(self) -> weights.Comparison:
    """The tensors against the model's own list."""
    return weights.compare(
      self.tensors, names.slots(self.model), self.ignored_from
    )

  def loaded_bytes(self, value_bytes: int, expand_fp8: bool) -> int | None:
    """Bytes in memory of what the files hold; None for a training state."""
    if self.step is not None:
      return None
    return sum(
      tensor.num_bytes
      if tensor.dtype == 'F8_E4M3' and not expand_fp8
      else math.prod(tensor.shape) * value_bytes
      for tensor in self.tensors.values()
    )

  def check(self) -> None:
    """Everything that can be checked without reading the weights.

    Raises:
      StorageError: a tensor is missing, unexpected or of a wrong shape.
      DataError: the tokenizer is broken or larger than the embedding.
    """
    if self.step is None:
      self.comparison.check(self.folder)
    else:
      check_count(self.model, self.folder / workdir_lib.RUN)
    if (self.folder / workdir_lib.TOKENIZER).is_file():
      self.tokenizer()

  def verify(self) -> None:
    """Reads what no load reads, and all that has a SHA-256.

    Raises:
      StorageError: a file differs from its recorded SHA-256, an MTP module
        has tables of its own, or another set of weights lies beside these.
    """
    if self.step is not None:
      checkpoint.verify(self.folder / workdir_lib.CHECKPOINTS, self.step)
      return
    if self.is_workdir:
      verify_manifest(
        self.folder / workdir_lib.WEIGHTS,
        self.folder / workdir_lib.WEIGHTS_MANIFEST,
      )
    weight_checks.check_copies(self.tensors, names.slots(self.model))
    weight_checks.check_two_sets(self.tensors_folder, self.tensors)

  def end_ids(self) -> tuple[int, ...]:
    """Ids that end a text or a turn, sorted.

    A chat model ends its turns with another token than its texts: config.json
    and generation_config.json may name several, beside the tokenizer's EOS.

    Raises:
      InputError: a file is broken, names an id that is none, or there is no
        tokenizer.
    """
    path = self.folder / huggingface.GENERATION_CONFIG
    return tuple(
      sorted(
        {
          self.tokenizer().eos_id,
          *huggingface.end_ids(self.published, huggingface.CONFIG),
          *huggingface.end_ids(read_json(path), str(path)),
        }
      )
    )

  def tokenizer(self) -> Tokenizer:
    """The tokenizer beside the weights.

    Raises:
      StorageError: there is none.
      DataError: it is broken or larger than the embedding.
    """
    return self._tokenizer

  @functools.cached_property
  def _tokenizer(self) -> Tokenizer:
    path = self.folder / workdir_lib.TOKENIZER
    if not path.is_file():
      raise StorageError(
        f'{self.folder} has no {workdir_lib.TOKENIZER}; text needs one, token '
        'ids can still be scored with --tokens'
      )
    tokenizer = load_folder(self.folder)
    try:
      tokenizer.check_fits(self.model.vocab_size)
    except InputError as error:
      raise StorageError(f'{path}: {error}') from error
    return tokenizer


@dataclasses.dataclass(frozen=True)
class Opened:
  """A model that can be run.

  Attributes:
    found: where it is and what it is.
    weights: in float32 but for what another precision casts.
  """

  found: Found
  weights: Weights

  @property
  def config(self) -> Config:
    return self.found.config

  @property
  def step(self) -> int:
    """Optimizer steps; 0 for published or converted weights."""
    return self.found.step or 0

  def tokenizer(self) -> Tokenizer:
    """See Found.tokenizer."""
    return self.found.tokenizer()


def find(
  path: str | pathlib.Path, drop_mtp: bool = False, averaged: bool = False
) -> Found:
  """Looks at a --checkpoint without loading it.

  Args:
    path: a workdir, a folder of published weights, or hf://owner/name.
    drop_mtp: leave MTP modules out, whatever the config says of them.
    averaged: take the exponential moving average of a run's weights.

  Raises:
    StorageError: nothing usable is there.
  """
  folder = hub.local(path)
  weights.refuse_other_formats(folder)
  if not folder.is_dir():
    raise StorageError(
      f'checkpoint {folder} does not exist; give the --workdir of a training '
      'run, or a folder with config.json and safetensors'
    )
  if (folder / workdir_lib.RUN).is_file():
    found = _find_workdir(folder)
  elif huggingface.is_published(folder):
    found = _find_published(folder)
  else:
    _refuse(folder)
  if averaged:
    if found.step is None or not found.config.optim.ema_decay:
      raise StorageError(
        f'{folder} holds no averaged weights; only a run with '
        '--config.optim.ema_decay= above 0 does'
      )
    found = dataclasses.replace(found, averaged=True)
  if not drop_mtp:
    return found
  model = dataclasses.replace(found.model, mtp_depth=0)
  return dataclasses.replace(
    found,
    config=dataclasses.replace(found.config, model=model),
    ignored_from=model.num_layers,
  )


def _refuse(folder: pathlib.Path):
  for path in sorted(folder.iterdir()):
    if path.is_file() and path.suffix in weights.REFUSED:
      weights.refuse_other_formats(path)
  raise StorageError(
    f'{folder} is no workdir (it has no {workdir_lib.RUN}) and no Hugging Face '
    f'folder (it has no {huggingface.CONFIG})'
  )


def _find_published(folder: pathlib.Path) -> Found:
  path = folder / huggingface.CONFIG
  published = huggingface.read_config(path)
  model = huggingface.model_config(published, str(path))
  huggingface.quantization(published, str(path))
  tensors = weights.find_tensors(folder)
  model = weights.find_mtp(model, tensors)
  return Found(folder, config_of(model), None, published, tensors)


def config_of(model: ModelConfig) -> Config:
  """A run's config for a model that no run of ours made."""
  length = min(DataConfig().sequence_length, model.context_length)
  return Config(model=model, data=DataConfig(sequence_length=length))


def _find_workdir(folder: pathlib.Path) -> Found:
  config = workdir_lib.read_config(folder)
  published, path = {}, folder / workdir_lib.PUBLISHED_CONFIG
  if os.path.lexists(path):
    published = huggingface.read_config(path)
  step = checkpoint.newest(folder / workdir_lib.CHECKPOINTS)
  if step is not None:
    return Found(folder, config, step, published, {})
  if not workdir_lib.has_weights(folder):
    raise StorageError(
      f'{folder} holds no finished checkpoint yet; train on with: seekax train '
      f'--workdir={folder}'
    )
  tensors = weights.find_tensors(folder / workdir_lib.WEIGHTS)
  return Found(folder, config, None, published, tensors)


def newest_step(folder: pathlib.Path) -> int:
  """The newest proven step of a workdir.

  Raises:
    StorageError: it holds no training state.
  """
  step = find(folder).step
  if step is None:
    raise StorageError(f'{folder} holds weights, but no training state')
  return step


def open_checkpoint(
  path: str | pathlib.Path | Found,
  precision: str = 'float32',
  expand_fp8: bool = False,
  shardings: Weights | None = None,
) -> Opened:
  """Loads weights and router bias, without the optimizer, in one copy.

  Args:
    path: a workdir or a folder of published weights, or what `find` found.
    precision: float32 or bfloat16, the compute dtype.
    expand_fp8: make arrays of FP8 weights, as training needs them; without,
      they stay codes and scales.
    shardings: `Weights` of shardings; None: one device.

  Raises:
    StorageError: nothing usable is there, or it fails its checks.
  """
  found = path if isinstance(path, Found) else find(path)
  where = None if shardings is None else shardings.tree
  size = jnp.dtype(precision).itemsize
  check_room(found.model, size, found.loaded_bytes(size, expand_fp8))
  found.check()
  # Checksums are computed while the weights are read.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    verified = pool.submit(found.verify)
    if found.step is None:
      tree = load(found.model, found.tensors, precision, expand_fp8, where)
    else:
      verified.result()  # Orbax may choke on what is broken.
      tree = _restore(found, jnp.dtype(precision), where)
    verified.result()
  return Opened(found, Weights(**tree))


def _restore(
  found: Found, dtype: jnp.dtype, shardings: PyTree
) -> dict[str, PyTree]:
  """The weights of a training state."""

  def cast(tree):
    return {**tree, 'params': cast_params(tree['params'], dtype)}

  abstract = jax.eval_shape(cast, names.abstract_tree(found.model))
  if shardings is not None:
    abstract = jax.tree.map(
      lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y),
      abstract,
      shardings,
    )
  assert found.step is not None
  return checkpoint.restore_some(
    found.folder / workdir_lib.CHECKPOINTS,
    found.step,
    found.part,
    abstract,
  )
