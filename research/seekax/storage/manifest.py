"""SHA-256 manifests beside the folders that they prove.

Orbax restores flipped bits in array data without an error; a manifest that is
written after the commit and checked on restore finds them.
"""

import hashlib
import os
import pathlib
from pathlib import PurePosixPath
import re

from absl import logging

from seekax.configuration.errors import InputError
from seekax.files import (
  left_by_system,
  one_line,
  open_regular,
  printable,
  quoted,
  read_bounded,
  write_atomically,
)

_LINE = re.compile(r'([0-9a-f]{64})  (.+)', re.DOTALL)


class StorageError(InputError):
  """Something on disk can't be used; the message says what, and the fix.

  The message may quote names from untrusted files, so it is made one line.
  """

  def __init__(self, message: str):
    super().__init__(one_line(message))


class StrayFileError(StorageError):
  """There is a file that doesn't belong here; all others are sound."""


def file_hash(path: pathlib.Path) -> str:
  """SHA-256 of a file, in hexadecimal."""
  descriptor, _ = open_regular(path, StorageError)
  with open(descriptor, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_manifest(folder: pathlib.Path, manifest: pathlib.Path) -> None:
  """Lists every file of a folder with its hash, in sha256sum's format."""
  lines = [
    f'{file_hash(path)}  {path.relative_to(manifest.parent).as_posix()}\n'
    for path in sorted(folder.rglob('*'))
    if path.is_file() and not left_by_system(path.name)
  ]
  write_atomically(manifest, ''.join(lines))


def verify_manifest(folder: pathlib.Path, manifest: pathlib.Path) -> None:
  """Compares a folder's files with their hashes.

  Files that operating systems leave in folders are skipped and logged.

  Raises:
    StrayFileError: all listed files are sound, but there is another one.
    StorageError: a file is missing, differs or isn't regular; it is named.
  """
  listed = _read_manifest(folder, manifest)
  found = _files_below(folder, manifest.parent)
  for name, expected in listed.items():
    path = manifest.parent / name
    if name not in found:
      raise StorageError(f'{path} is missing, though {manifest} lists it')
    if file_hash(path) != expected:
      raise StorageError(
        f'{path} does not match its SHA-256 in {manifest}: it was changed '
        'after it was saved'
      )
  for name in sorted(found - listed.keys()):
    path = manifest.parent / name
    if not left_by_system(path.name):
      raise StrayFileError(
        f'{path} is not listed in {manifest}, all files of which are sound: '
        'it is not part of the checkpoint; delete it, or move it elsewhere'
      )
    logging.warning('%s is passed over: a system left it there', path)


def _read_manifest(
  folder: pathlib.Path, manifest: pathlib.Path
) -> dict[str, str]:
  """Returns the hash of each file by name; all names are in the folder.

  Raises:
    StorageError: it isn't a list of hashes, or names files elsewhere.
  """
  text = read_bounded(manifest, 'a manifest of SHA-256', StorageError)
  # Only this line end counts: a flipped bit can turn one into another.
  *lines, rest = text.decode('utf-8', errors='replace').split('\n')
  if rest or not lines:
    raise StorageError(f'{manifest} is cut short: it has no last line')
  listed = {}
  inside = PurePosixPath(folder.relative_to(manifest.parent).as_posix())
  for number, line in enumerate(lines, start=1):
    match = _LINE.fullmatch(line)
    if not match:
      raise StorageError(f'{manifest}:{number} is no SHA-256 and a file')
    name = PurePosixPath(match[2])
    if '..' in name.parts or inside not in name.parents:
      raise StorageError(
        f'{manifest}:{number} names {quoted(match[2])}, which is no file in '
        f'{folder}'
      )
    listed[match[2]] = match[1]
  return listed


def _files_below(folder: pathlib.Path, base: pathlib.Path) -> set[str]:
  """Names of all files in a folder; raises for links that leave it.

  Raises:
    StorageError: something is neither a file nor a folder.
  """
  found, home = set(), folder.resolve()
  for parent, folders, names in os.walk(folder):
    for name in (*folders, *names):
      path = pathlib.Path(parent, name)
      if path.is_symlink():
        _check_link(path, home)
      elif not path.is_file() and not path.is_dir():
        raise StorageError(f'{path} is neither a file nor a folder; delete it')
    found |= {
      pathlib.Path(parent, name).relative_to(base).as_posix() for name in names
    }
  return found


def _check_link(path: pathlib.Path, home: pathlib.Path) -> None:
  try:
    real = path.resolve()
  except (OSError, RuntimeError) as error:
    raise StorageError(f'{path} is a link to itself') from error
  if home not in real.parents or not real.is_file():
    raise StorageError(
      f'{path} is a link to {printable(str(real))}, which is no file in '
      f'{home}; put the file itself there'
    )
