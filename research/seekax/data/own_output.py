"""Recognises folders that seekax itself wrote, which hold no training text."""

import json
import os
import pathlib

from seekax.files import JsonObject

# Files that mark a run, a folder of tokens, and an unfinished folder of tokens.
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
  """Returns in words what seekax folder this is; '' if it may hold text.

  The folder of a published model counts too: its other files are no training
  text.
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
    return ''  # The code that reads the folder reports the error.
  if 'config.json' in names and any(n.endswith(_WEIGHTS) for n in names):
    return 'the folder of a model'
  return ''


def tokenizer_files(path: str) -> frozenset[str]:
  """Returns the real paths of a tokenizer's files.

  Args:
    path: the tokenizer's file or folder, '' for none.
  """
  if not path:
    return frozenset()
  if not os.path.isdir(path):
    return frozenset((os.path.realpath(path),))
  return frozenset(
    os.path.realpath(os.path.join(path, name)) for name in _TOKENIZER_FILES
  )


def _read(path: pathlib.Path) -> JsonObject:
  """The object in a JSON file; {} if it can't be read or isn't an object."""
  try:
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
      return {}
    value = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return {}
  return value if isinstance(value, dict) else {}
