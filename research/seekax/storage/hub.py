"""Fetches models of the Hugging Face Hub, such as `hf://owner/name@revision`.

huggingface_hub fetches and caches them; the environment variables that it reads
(HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE) work as they do elsewhere.
"""

import pathlib
import re

from seekax.files import reason
from seekax.storage.manifest import StorageError

SCHEME = 'hf://'
# Weights, configs and tokenizers, but nothing that could run code.
_WANTED = ('*.safetensors', '*.json', '*.jinja')
_NAME = re.compile(
  r'hf://(?P<name>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?/?', re.ASCII
)


def is_on_hub(path: str) -> bool:
  """Whether a --checkpoint names a model of the Hub."""
  return path.startswith(SCHEME)


def local(path: str | pathlib.Path) -> pathlib.Path:
  """The folder of a --checkpoint; fetches it first if it is on the Hub.

  Raises:
    StorageError: see `fetch`.
  """
  name = str(path)
  return fetch(name) if is_on_hub(name) else pathlib.Path(path)


def fetch(path: str) -> pathlib.Path:
  """Fetches the files of a model that aren't cached yet.

  Args:
    path: hf://owner/name, optionally with @ and a branch, tag or commit.

  Returns:
    The folder of its files.

  Raises:
    StorageError: the name is malformed, the model doesn't exist, or the Hub
      can't be reached.
  """
  match = _NAME.fullmatch(path)
  if not match:
    raise StorageError(f'{path}: write hf://owner/name or hf://owner/name@v1')
  # Imported here, because it takes a third of a second.
  import huggingface_hub
  from huggingface_hub import errors

  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        match['name'],
        revision=match['revision'],
        allow_patterns=list(_WANTED),
      )
    )
  except errors.RevisionNotFoundError as error:
    raise StorageError(
      f'{path}: the model has no revision {match["revision"]!r}'
    ) from error
  except errors.GatedRepoError as error:
    raise StorageError(
      f'{path}: its owners ask who you are; accept their terms on the Hub and '
      'set HF_TOKEN'
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise StorageError(
      f'{path}: there is no such model, or it is private (then set HF_TOKEN)'
    ) from error
  except errors.LocalEntryNotFoundError as error:
    raise StorageError(
      f'{path}: the Hub can not be reached, and the model is not here yet; '
      'give the path of a folder, or come back with a network'
    ) from error
  # A server that isn't the Hub may answer anything.
  except (errors.HfHubHTTPError, OSError, ValueError, TypeError) as error:
    raise StorageError(f'{path}: {reason(error)}') from error
