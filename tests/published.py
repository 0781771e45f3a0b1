"""Small published folders for tests, written and read byte by byte.

The container is spelled out here once more, so that a mistake of the library's
writer can't hide one of its reader.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from reference import fp8 as oracle
from seekax.configuration.model import ModelConfig
from seekax.storage import names
from seekax.storage.published_config import published_config

DTYPES = {
  'F32': np.dtype(np.float32),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F16': np.dtype(np.float16),
  'I64': np.dtype(np.int64),
}
INDEX = 'model.safetensors.index.json'

# Blocks are ragged in rows and in columns; the axes that are split over
# devices are divisible by 4.
MODEL = ModelConfig(
  vocab_size=300,
  embed_dim=160,
  num_layers=3,
  num_dense_layers=1,
  context_length=64,
  num_heads=4,
  query_latent_dim=132,
  kv_latent_dim=136,
  nope_head_dim=36,
  rope_head_dim=8,
  value_head_dim=40,
  mlp_dim=152,
  expert_dim=136,
  num_experts=4,
  num_shared_experts=1,
  experts_per_token=2,
  num_expert_groups=2,
  num_kept_groups=1,
  rope_original_length=64,
  rope_factor=4.0,
  yarn_mscale=0.5,
  yarn_mscale_all_dim=1.2,
  init_std=0.02,
)
# The same kinds of parts, quick to write and to compile.
SMALL = dataclasses.replace(
  MODEL,
  vocab_size=29,
  embed_dim=24,
  num_heads=3,
  query_latent_dim=10,
  kv_latent_dim=12,
  nope_head_dim=6,
  value_head_dim=5,
  mlp_dim=20,
  expert_dim=7,
)
V2 = dataclasses.replace(
  SMALL,
  query_latent_dim=0,
  router='softmax',
  group_score='max',
  normalize_gates=False,
  num_shared_experts=2,
  mtp_depth=0,
)
LLAMA = ModelConfig(
  vocab_size=29,
  embed_dim=24,
  num_layers=2,
  num_dense_layers=0,
  context_length=64,
  attention='gqa',
  num_heads=4,
  num_kv_heads=2,
  query_latent_dim=0,
  kv_latent_dim=0,
  nope_head_dim=0,
  rope_head_dim=8,
  value_head_dim=8,
  ffn='dense',
  mlp_dim=20,
  mtp_depth=0,
  rope_layout='half',
  rope_scaling='llama3',
  rope_factor=8.0,
  rope_original_length=64,
)

# By published name, in the published shape and dtype.
Tensors = dict[str, np.ndarray]


def tensors(config: ModelConfig, stored: str, seed: int = 0) -> Tensors:
  """Random weights: uneven gains, biases of both signs, equal copies.

  Args:
    config: the model.
    stored: F32, BF16, F8_E4M3 (what isn't FP8 then is bfloat16, the bias
      float32) or 'mixed' (all three, also within a leaf of our tree).
    seed: of the draws.
  """
  rng = np.random.default_rng(seed)
  made: Tensors = {}
  for number, slot in enumerate(names.slots(config)):
    if slot.is_copy:
      original = 'lm_head' if 'head' in slot.name else 'model.embed_tokens'
      made[slot.name] = made[f'{original}.weight']
      continue
    kind = stored
    if stored == 'mixed':
      kind = ('F32', 'BF16', 'F8_E4M3')[number % 3]
    if kind == 'F8_E4M3' and slot.in_fp8:
      made |= fp8_pair(rng, slot.name, slot.shape)
      continue
    noise = rng.standard_normal(slot.shape)
    values = 0.25 * noise if slot.inputs else 1 + 0.3 * noise
    if slot.is_bias:
      values, kind = 0.3 * noise, 'F32'
    kind = 'BF16' if kind == 'F8_E4M3' else kind
    made[slot.name] = values.astype(np.float32).astype(DTYPES[kind])
  return made


def fp8_pair(rng, name: str, shape: tuple[int, ...]) -> Tensors:
  """Random finite codes and scales of a matrix; values of a weight's size."""
  finite = np.setdiff1d(np.arange(256), (0x7F, 0xFF)).astype(np.uint8)
  codes = rng.choice(finite, shape).view(DTYPES['F8_E4M3'])
  blocks = tuple(math.ceil(size / 128) for size in shape)
  scales = rng.uniform(0.5, 2, blocks).astype(np.float32) / 1000
  return {name: codes, f'{name}_scale_inv': scales}


def expanded(made: Tensors) -> Tensors:
  """The weights as float32 values, scales multiplied in by the oracle."""
  result = {}
  for name, array in made.items():
    if name.endswith('_scale_inv'):
      continue
    scales = made.get(f'{name}_scale_inv')
    result[name] = (
      array.astype(np.float32)
      if scales is None
      else oracle.dequantize(array.view(np.uint8), scales)
    )
  return result


def fields(config: ModelConfig, made: Tensors, **changes: Any) -> dict:
  """A config.json for these tensors."""
  fp8 = any(name.endswith('_scale_inv') for name in made)
  return published_config(config, 'bfloat16', fp8, False) | changes


def write_folder(
  folder: pathlib.Path,
  config_json: Mapping[str, Any],
  made: Tensors,
  shards: int = 1,
) -> pathlib.Path:
  """Writes config.json and the tensors, with an index if there are shards."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config_json))
  if shards == 1:
    write_file(folder / 'model.safetensors', made)
    return folder
  listed = {}
  for shard in range(shards):
    name = f'model-{shard + 1:05d}-of-{shards:05d}.safetensors'
    mine = {key: made[key] for key in list(made)[shard::shards]}
    write_file(folder / name, mine)
    listed |= dict.fromkeys(mine, name)
  total = sum(array.nbytes for array in made.values())
  write_index(folder, listed, {'total_size': total})
  return folder


def write_index(folder: pathlib.Path, listed: Any, metadata: Any = None):
  """Writes a model.safetensors.index.json."""
  content = {'metadata': metadata or {}, 'weight_map': listed}
  (folder / INDEX).write_text(json.dumps(content))


def write_file(path: pathlib.Path, made: Tensors) -> None:
  """Writes one safetensors file."""
  header, data = {}, b''
  for name, array in made.items():
    dtype = next(key for key, value in DTYPES.items() if value == array.dtype)
    raw = np.ascontiguousarray(array).tobytes()
    span = [len(data), len(data) + len(raw)]
    header[name] = entry(dtype, array.shape, span)
    data += raw
  write_raw(path, json.dumps(header).encode(), data)


def entry(dtype: str, shape, offsets) -> dict[str, Any]:
  """A tensor's entry in a header."""
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


def write_raw(path: pathlib.Path, header: bytes, data: bytes = b'') -> None:
  """Writes a safetensors file with any header."""
  path.write_bytes(len(header).to_bytes(8, 'little') + header + data)


def read_file(path: pathlib.Path) -> Tensors:
  """All tensors of a file."""
  content = path.read_bytes()
  start = 8 + int.from_bytes(content[:8], 'little')
  header = json.loads(content[8:start])
  header.pop('__metadata__', None)
  return {
    name: np.frombuffer(
      content[slice(*(start + at for at in about['data_offsets']))],
      DTYPES[about['dtype']],
    ).reshape(about['shape'])
    for name, about in header.items()
  }


def read_folder(folder: pathlib.Path) -> Tensors:
  """All tensors of all files of a folder."""
  found: Tensors = {}
  for path in sorted(folder.glob('*.safetensors')):
    found |= read_file(path)
  return found


def differences(found: Tensors, expected: Tensors) -> list[str]:
  """Names of tensors that differ in presence, dtype, shape or any bit."""
  return sorted(
    name
    for name in found.keys() | expected.keys()
    if name not in found
    or name not in expected
    or found[name].dtype != expected[name].dtype
    or found[name].shape != expected[name].shape
    or found[name].tobytes() != expected[name].tobytes()
  )
