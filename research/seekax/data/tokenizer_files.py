"""Tokenizers from files: a tokenizer.json, or that of a released model."""

from collections.abc import Sequence
import json
import os
import pathlib

from seekax.data import foreign_tokenizer, sources
from seekax.data.tokenizer import Tokenizer
from seekax.data.tokenizer_checks import parse, unique_keys
from seekax.files import JsonObject

_ADDED_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
_MAX_CONFIG_BYTES = 16 << 20
_MAX_TOKENIZER_BYTES = 256 << 20


def load(
  path: str | os.PathLike,
  bos: str = '',
  eos: str = '',
  more_tokens: Sequence[JsonObject] = (),
) -> Tokenizer:
  """Reads a Hugging Face tokenizer.json.

  Args:
    path: path of the file.
    bos: see `Tokenizer`.
    eos: see `Tokenizer`.
    more_tokens: added tokens that stand in another file.

  Raises:
    DataError: the file is missing, broken, or lacks the BOS or EOS token.
  """
  try:
    # Read as bytes: text mode would turn CRLF into LF, and `save` change it.
    source = _read_bytes(pathlib.Path(path), _MAX_TOKENIZER_BYTES)
    text = source.decode('utf-8')
    foreign_tokenizer.check(text, _verdicts())
    return Tokenizer(_with_tokens(text, more_tokens), bos, eos)
  except OSError as error:
    raise sources.DataError(
      f'cannot read tokenizer {path} ({error.strerror}); give the path of a '
      'tokenizer.json'
    ) from error
  except UnicodeDecodeError as error:
    raise sources.DataError(
      f'tokenizer {path} is not UTF-8 at byte {error.start}; give a '
      'tokenizer.json'
    ) from error
  except sources.DataError as error:
    raise sources.DataError(f'{path}: {error}') from error


def load_folder(folder: pathlib.Path) -> Tokenizer:
  """Reads the tokenizer in a released model's folder.

  It reads `tokenizer.json` and, if present, the names of BOS and EOS and the
  added tokens in `tokenizer_config.json`. Nothing else in that file counts; the
  code that its `auto_map` names is never run.

  Raises:
    DataError: see `load`; or `tokenizer_config.json` is broken.
  """
  path = folder / 'tokenizer.json'
  if not os.path.exists(path) and os.path.exists(folder / 'tiktoken.model'):
    raise sources.DataError(
      f'{folder} has a tiktoken.model but no tokenizer.json; convert it first'
    )
  config_path = folder / 'tokenizer_config.json'
  config = read_json(config_path)
  bos, eos = (
    _token_name(config_path, key, config.get(key))
    for key in ('bos_token', 'eos_token')
  )
  return load(path, bos, eos, _config_tokens(config_path, config))


def _config_tokens(path: pathlib.Path, config: JsonObject) -> list[JsonObject]:
  """The entries of `added_tokens_decoder`, as tokenizer.json spells them.

  Raises:
    DataError: they don't map ids to objects with a name.
  """
  entries, found = config.get('added_tokens_decoder') or {}, []
  if not isinstance(entries, dict):
    raise sources.DataError(f'{path}: added_tokens_decoder is no JSON object')
  for key, entry in entries.items():
    name = entry.get('content') if isinstance(entry, dict) else None
    if not (key.isdecimal() and len(key) < 11 and isinstance(name, str)):
      raise sources.DataError(
        f'{path}: added_tokens_decoder maps {key[:40]!r} to no token with a '
        'content'
      )
    flags = {flag: entry.get(flag) is True for flag in _ADDED_FLAGS}
    found.append({'id': int(key), 'content': name, **flags})
  return sorted(found, key=lambda token: token['id'])


def _with_tokens(source: str, tokens: Sequence[JsonObject]) -> str:
  """Adds the tokens that a tokenizer.json lacks; unchanged if it lacks none.

  Transformers adds those that stand only in tokenizer_config.json, and a model
  that was trained with them knows each as one id.

  Raises:
    DataError: the two files give a token different ids.
  """
  if not tokens:
    return source
  known = parse(source)
  missing = []
  for token in tokens:
    here = known.token_to_id(token['content'])
    if here is None:
      missing.append(token)
    elif here != token['id']:
      raise sources.DataError(
        f'tokenizer_config.json gives {token["content"][:80]!r} the id '
        f'{token["id"]}, tokenizer.json has it as {here}; take the original '
        'files'
      )
  if not missing:
    return source
  definition = json.loads(source, object_pairs_hook=unique_keys)
  definition['added_tokens'] = [
    *(definition.get('added_tokens') or ()),
    *missing,
  ]
  return json.dumps(definition, ensure_ascii=False)


def _token_name(path: pathlib.Path, key: str, value: object) -> str:
  name = value.get('content') if isinstance(value, dict) else value
  if name is not None and not isinstance(name, str):
    raise sources.DataError(
      f'{path}: {key} is neither a string nor an object with a content'
    )
  return name or ''


def read_json(
  path: pathlib.Path, max_bytes: int = _MAX_CONFIG_BYTES
) -> JsonObject:
  """Reads a small JSON object; {} if there is no such file.

  Raises:
    DataError: the file is unreadable, too large or not a JSON object.
  """
  content = read_small(path, max_bytes)
  if content is None:
    return {}
  try:
    result = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise sources.DataError(f'{path} is not JSON ({error})') from error
  if not isinstance(result, dict):
    raise sources.DataError(f'{path} is not a JSON object')
  return result


def read_small(path: pathlib.Path, max_bytes: int) -> str | None:
  """Reads a UTF-8 file; None if it doesn't exist.

  Raises:
    DataError: it isn't a regular file, is unreadable, too large or not UTF-8.
  """
  if not os.path.lexists(path):
    return None
  try:
    return _read_bytes(path, max_bytes).decode('utf-8')
  except OSError as error:
    raise sources.DataError(f'cannot read {path} ({error.strerror})') from error
  except UnicodeDecodeError as error:
    raise sources.DataError(
      f'{path} is not UTF-8 at byte {error.start}'
    ) from error


def _read_bytes(path: pathlib.Path, max_bytes: int) -> bytes:
  if path.exists() and not (path.is_file() or path.is_dir()):
    raise sources.DataError(f'{path} is not a file')  # A pipe would block.
  with path.open('rb') as file:
    content = file.read(max_bytes + 1)
  if len(content) > max_bytes:
    raise sources.DataError(f'{path} is larger than {max_bytes} bytes')
  return content


def _verdicts() -> pathlib.Path | None:
  """Folder of marks for tokenizers found sound; None without a home folder."""
  try:
    return cache_folder() / 'tried'
  except RuntimeError:
    return None


def cache_folder() -> pathlib.Path:
  if folder := os.environ.get('SEEKAX_CACHE'):
    return pathlib.Path(folder, 'tokenizers')
  if folder := os.environ.get('XDG_CACHE_HOME'):
    return pathlib.Path(folder, 'seekax', 'tokenizers')
  return pathlib.Path.home() / '.cache' / 'seekax' / 'tokenizers'
