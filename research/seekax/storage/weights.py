"""A folder of safetensors: which tensors it has, and which it should have.

`find_tensors` reads only headers. It refuses what a hostile or damaged folder
may contain: files outside the folder, missing shards, a tensor in two files.
`compare` compares the tensors with the model's own list.
"""

from collections.abc import Iterable
import dataclasses
import datetime
import os
import pathlib
import re
from typing import NoReturn

from absl import logging

from seekax.configuration.model import ModelConfig
from seekax.files import parse_json, printable, quoted, read_bounded
from seekax.storage import fp8, names
from seekax.storage.manifest import StorageError
from seekax.storage.safetensors_header import itemsize, read_header, Tensor

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
_SUFFIX = '.safetensors'
# Formats that can run code when they are read, or that are never published.
REFUSED = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle', '.msgpack')
REFUSED += ('.npz', '.h5', '.gguf')
# Maximum number of tensors in a folder, after fused ones are split. Kimi-K2 has
# 139,000 with its scales.
_MAX_PARTS = 500_000
_FILE_NAME = re.compile(r'[A-Za-z0-9_.\-]{1,255}')
# A folder that lacks more than this many tensors holds another model.
_MAX_MISSING = 10_000
# Derived buffers that some old files contain.
_DERIVED = re.compile(r'.*\.rotary_emb\.inv_freq')
# All experts of a layer in one tensor: [E, 2F, D] and [E, D, F].
_FUSED = re.compile(r'(.*\.mlp\.experts)\.(gate_up|down)_proj(_scale_inv)?')
_MTP_LAYER = re.compile(r'model\.layers\.(\d+)\.')

Tensors = dict[str, Tensor]


def refuse_other_formats(path: pathlib.Path) -> None:
  """Raises StorageError for a file that holds weights in another format."""
  if path.suffix in REFUSED and not path.is_dir():
    raise StorageError(
      f'{path} is a {path.suffix} file: such files can run code or are not '
      'checked; give a folder of safetensors with its config.json'
    )
  if path.is_file():
    raise StorageError(f'{path} is a file; give the folder that holds it')


def find_tensors(folder: pathlib.Path) -> Tensors:
  """Finds all tensors of a folder, experts one by one; only reads headers.

  Raises:
    StorageError: the index or a header is wrong, or there are no safetensors.
  """
  listed, metadata = _listed(folder)
  shards = sorted(set(listed.values())) if listed else [SINGLE]
  tensors: Tensors = {}
  # Check all names before opening the first file.
  for shard, path in [(shard, _inside(folder, shard)) for shard in shards]:
    found, _ = read_header(path)
    for name, tensor in found.items():
      if name in tensors:
        raise StorageError(
          f'tensor {name!r} is in {tensors[name].file} and in {tensor.file}'
        )
      if listed and listed.get(name) != shard:
        raise StorageError(
          f'{tensor.file} holds {name!r}, which {folder / INDEX} '
          + (f'looks for in {listed[name]}' if name in listed else 'lacks')
        )
      tensors[name] = tensor
  for name in listed:
    if name not in tensors:
      raise StorageError(
        f'{folder / listed[name]} lacks tensor {quoted(name)}, though '
        f'{folder / INDEX} lists it there'
      )
  total = sum(tensor.num_bytes for tensor in tensors.values())
  _say_wrong_total(folder / INDEX, metadata, total)
  both = two_sets(folder, tensors)
  if both:
    logging.warning('%s: those of the index are taken', both)
  return split_fused(_without_derived(folder, tensors))


def _listed(folder: pathlib.Path) -> tuple[dict[str, str], object]:
  """The index: file by tensor, and its metadata; {} for a single file."""
  if not folder.is_dir():
    raise StorageError(f'{folder} is no folder, or a link to itself')
  index = folder / INDEX
  if not os.path.lexists(index):
    if os.path.lexists(folder / SINGLE):
      return {}, None
    others = sorted(p.name for p in folder.iterdir() if p.suffix in REFUSED)
    raise StorageError(
      f'{folder} has neither {INDEX} nor {SINGLE}'
      + (
        f', only {printable(others[0])}, which can run code when it is '
        'read; get the safetensors of this model'
        if others
        else ''
      )
    )
  text = read_bounded(index, 'a safetensors index', StorageError)
  content = parse_json(index, text, StorageError)
  listed = content.get('weight_map') if isinstance(content, dict) else None
  if (
    not isinstance(listed, dict)
    or not listed
    or not all(isinstance(name, str) for name in listed.values())
  ):
    raise StorageError(f'{index} has no weight_map from tensors to files')
  return listed, content.get('metadata')


def _say_wrong_total(index: pathlib.Path, metadata: object, total: int) -> None:
  """Logs a wrong total, which nothing uses and several releases have."""
  said = metadata.get('total_size') if isinstance(metadata, dict) else None
  if said is not None and said != total:
    logging.info('%s says total_size=%s; it is %d', index, quoted(said), total)


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The path of a file that an index names; it must be in the folder.

  Raises:
    StorageError: it is outside, or doesn't exist.
  """
  path = folder / name
  if not _FILE_NAME.fullmatch(name):
    raise StorageError(
      f'{folder / INDEX} names {quoted(name)}, which is not a file beside it'
    )
  if path.suffix != _SUFFIX:
    refuse_other_formats(path)
    raise StorageError(f'{folder / INDEX} names {quoted(name)}: no safetensors')
  refuse_leaving(path)
  if not os.path.lexists(path):
    raise StorageError(f'{path} is missing, though {folder / INDEX} names it')
  return path


def refuse_leaving(path: pathlib.Path) -> None:
  """Raises StorageError for a link that leaves its folder.

  One layout of links is allowed, that of Hugging Face's download cache:
  snapshots/<revision>/<file> -> ../../blobs/<hash>.
  """
  home = path.parent.resolve()
  try:
    real = path.resolve()
  except RuntimeError as error:
    raise StorageError(f'{path} is a link to itself') from error
  blobs = home.parent.parent / 'blobs'
  in_cache = home.parent.name == 'snapshots' and real.parent == blobs
  if real.parent != home and not in_cache:
    raise StorageError(f'{path} is a link that leaves the folder, to {real}')


def _without_derived(folder: pathlib.Path, tensors: Tensors) -> Tensors:
  kept = {n: t for n, t in tensors.items() if not _DERIVED.fullmatch(n)}
  if len(kept) < len(tensors):
    logging.warning(
      '%s: %d rotary_emb.inv_freq buffers are ignored; they follow from the '
      'config',
      folder,
      len(tensors) - len(kept),
    )
  return kept


def split_fused(tensors: Tensors) -> Tensors:
  """Splits fused expert tensors into single experts, by byte ranges."""
  split: Tensors = {}
  for name, tensor in tensors.items():
    match = _FUSED.fullmatch(name)
    parts = {name: tensor}
    if match:
      parts = _experts(tensor, _MAX_PARTS - len(split), *match.groups())
    for part, value in parts.items():
      if part in split:
        raise StorageError(
          f'{value.file}: tensor {name!r} holds {part!r}, which is there too'
        )
      split[part] = value
  return split


def _experts(
  tensor: Tensor, limit: int, prefix: str, kind: str, scale: str | None
) -> Tensors:
  """The tensors of single experts; raises for more than `limit`."""

  def refuse(what: str) -> NoReturn:
    raise StorageError(f'{tensor.file}: tensor {tensor.name!r} {what}')

  if len(tensor.shape) != 3:
    refuse(f'has shape {list(tensor.shape)}, not [experts, out, in]')
  count, rows, columns = tensor.shape
  words = ('gate', 'up') if kind == 'gate_up' else ('down',)
  if count * len(words) > limit:
    refuse(f'has {count} experts: the folder would have too many tensors')
  if rows % len(words):
    refuse(f'has {rows} rows, which gate and up can not share')
  shape = (rows // len(words), columns)
  if tensor.dtype == 'F8_E4M3' and len(words) > 1 and shape[0] % fp8.BLOCK:
    refuse(
      f'is FP8 with {shape[0]} rows of gate, not a multiple of {fp8.BLOCK}: '
      'gate and up would share a scale'
    )
  size = shape[0] * shape[1] * itemsize(tensor.dtype)
  found = {}
  for expert in range(count):
    for part, word in enumerate(words):
      name = f'{prefix}.{expert}.{word}_proj.weight{scale or ""}'
      start = tensor.start + (expert * len(words) + part) * size
      found[name] = Tensor(tensor.file, name, tensor.dtype, shape, start)
  return found


@dataclasses.dataclass(frozen=True)
class Comparison:
  """How a folder differs from the model's own list.

  Attributes:
    missing: tensors that should be there.
    unexpected: tensors that the model doesn't use.
    wrong: one line for each tensor of a wrong shape or dtype.
  """

  missing: tuple[str, ...]
  unexpected: tuple[Tensor, ...]
  wrong: tuple[str, ...]

  def check(self, folder: pathlib.Path) -> None:
    """Raises StorageError for the first difference."""
    if self.wrong:
      raise StorageError(self.wrong[0] + _more(self.wrong))
    if self.missing:
      raise StorageError(
        f'{folder} lacks tensor {self.missing[0]!r}' + _more(self.missing)
      )
    if self.unexpected:
      first = self.unexpected[0]
      hint = ''
      if _MTP_LAYER.match(first.name):
        hint = (
          '; if it belongs to the MTP layer, set num_nextn_predict_layers in '
          'config.json or convert with --mtp=drop'
        )
      raise StorageError(
        f'{first.file} holds {first.name!r}, for which the model of its '
        'config has no use' + _more(self.unexpected) + hint
      )


def _more(items: tuple) -> str:
  return f' (and {len(items) - 1} more)' if len(items) > 1 else ''


def compare(
  tensors: Tensors, slots: Iterable[names.Slot], ignore_layers_from: int = 0
) -> Comparison:
  """Compares a folder's tensors with the model's list.

  Args:
    tensors: tensors of the folder.
    slots: slots of the model.
    ignore_layers_from: tensors of this layer and later ones are ignored (an
      MTP layer that is dropped); 0: none.
  """
  missing, wrong, expected = [], [], set()
  for slot in slots:
    expected.add(slot.name)
    tensor = tensors.get(slot.name)
    if tensor is None:
      missing.append(slot.name)
      if len(missing) >= _MAX_MISSING:
        break
      continue
    problem = _problem(tensor, slot)
    scale_name = slot.name + fp8.SCALE_SUFFIX
    if problem is None and tensor.dtype == 'F8_E4M3':
      expected.add(scale_name)
      problem = _scale_problem(tensors.get(scale_name), slot, tensor)
    if problem:
      wrong.append(problem)
  unexpected = [
    tensor
    for name, tensor in tensors.items()
    if name not in expected and not _layer_from(name, ignore_layers_from)
  ]
  return Comparison(tuple(missing), tuple(unexpected), tuple(wrong))


def _layer_from(name: str, first: int) -> bool:
  match = _MTP_LAYER.match(name)
  return bool(first and match and int(match.group(1)) >= first)


def _problem(tensor: Tensor, slot: names.Slot) -> str | None:
  where = f'{tensor.file}: tensor {slot.name!r}'
  if tensor.shape != slot.shape:
    return (
      f'{where} has shape {list(tensor.shape)}, the config asks for '
      f'{list(slot.shape)}'
    )
  allowed = ('F32', 'BF16', 'F8_E4M3') if slot.in_fp8 else ('F32', 'BF16')
  if tensor.dtype not in allowed:
    return f'{where} has dtype {tensor.dtype}; {" or ".join(allowed)} is wanted'
  return None


def _scale_problem(
  scale: Tensor | None, slot: names.Slot, codes: Tensor
) -> str | None:
  name = slot.name + fp8.SCALE_SUFFIX
  if scale is None:
    return (
      f'{codes.file}: {slot.name!r} is FP8, its scales {name!r} are missing'
    )
  shape = fp8.scale_shape(slot.shape)
  if scale.shape != shape or scale.dtype != 'F32':
    return (
      f'{scale.file}: tensor {name!r} is {scale.dtype} {list(scale.shape)}; '
      f'F32 {list(shape)} is wanted'
    )
  return None


def find_mtp(model: ModelConfig, tensors: Tensors) -> ModelConfig:
  """Returns the model, with MTP modules only if the folder has them.

  Released configs name an MTP layer that other exports leave out.
  """
  if not model.mtp_depth or any(
    _layer_from(name, model.num_layers) for name in tensors
  ):
    return model
  logging.warning('the config names an MTP layer, the folder holds none')
  return dataclasses.replace(model, mtp_depth=0)


def two_sets(folder: pathlib.Path, tensors: Tensors) -> str:
  """Says that a folder has an index and another single file; '' if not.

  seekax and vLLM use the index, transformers the single file.
  """
  index, single = folder / INDEX, folder / SINGLE
  used = {tensor.file for tensor in tensors.values()}
  if single in used or not single.exists() or not index.exists():
    return ''
  dated = []
  for path in (index, single):
    date = datetime.datetime.fromtimestamp(path.stat().st_mtime)
    dated.append(f'{path.name} of {date:%Y-%m-%d %H:%M:%S}')
  return f'{folder} holds two sets of weights, {dated[0]} and {dated[1]}'
