"""Folders that seekax itself writes, wherever they stand: they hold no text."""

import json
import os
import pathlib
from typing import Any

# Of a run, of a folder of tokens, and of one that is being written.
_RUN, _TOKENS, _TOKENS_PLAN = 'run.json', 'manifest.json', 'plan.json'
_WEIGHTS = '.safetensors'
_TOKENIZER_FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'chat_template.json',
)
_MAX_BYTES = 64 << 20


def kind(folder: pathlib.Path) -> str:
  """What a folder is in words; '' if it may hold text.

  A folder with weights counts too: other files of a published model are no
  text to learn from.
  """
  run = _read(folder / _RUN)
  if isinstance(run.get('config'), dict) and 'model' in run['config']:
    return 'the workdir of a run'
  plan = _read(folder / _TOKENS) or _read(folder / _TOKENS_PLAN)
  if {'source_sha256', 'tokenizer_sha256', 'shard_documents'} <= plan.keys():
    return 'a folder of tokens'
  try:
    names = os.listdir(folder)
  except OSError:
    return ''  # Whoever reads it says so.
  if any(name.endswith(_WEIGHTS) for name in names):
    return 'a folder of weights'
  return ''


def tokenizer_files(path: str) -> frozenset[str]:
  """The real paths of what belongs to a tokenizer.

  Args:
    path: of its file or its folder, '' for none.
  """
  if not path:
    return frozenset()
  if not os.path.isdir(path):
    return frozenset((os.path.realpath(path),))
  return frozenset(
    os.path.realpath(os.path.join(path, name)) for name in _TOKENIZER_FILES
  )


def _read(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; {} if there is none, whatever the file is."""
  try:
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
      return {}
    value = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return {}
  return value if isinstance(value, dict) else {}
