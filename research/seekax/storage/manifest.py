"""SHA-256 manifests beside what they prove.

Orbax restores flipped bits in array data without a word; a manifest that is
written after the commit and checked on restore finds them.
"""

import hashlib
import os
import pathlib

from seekax.config import InputError


class StorageError(InputError):
  """Something on disk can't be used; the message says what and the fix."""


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a file that is whole or not there, also after a crash."""
  temporary = path.with_name(f'{path.name}.tmp-{os.getpid()}')
  with open(temporary, 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def file_hash(path: pathlib.Path) -> str:
  """SHA-256 of a file, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_manifest(folder: pathlib.Path, manifest: pathlib.Path) -> None:
  """Lists every file of a folder with its hash, in sha256sum's format."""
  lines = [
    f'{file_hash(path)}  {path.relative_to(manifest.parent).as_posix()}\n'
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  ]
  write_atomically(manifest, ''.join(lines))


def verify_manifest(folder: pathlib.Path, manifest: pathlib.Path) -> None:
  """Compares a folder's files with their hashes.

  Raises:
    StorageError: a file is missing, differs or isn't listed; it is named.
  """
  text = manifest.read_text(encoding='utf-8', errors='replace')
  listed = dict(
    reversed(line.split('  ', maxsplit=1))
    # No other line end: a flipped bit can make one of this one.
    for line in text.split('\n')
    if '  ' in line
  )
  for path in sorted(folder.rglob('*')):
    name = path.relative_to(manifest.parent).as_posix()
    if path.is_file() and name not in listed:
      raise StorageError(f'{path} is not listed in {manifest}')
  for name, expected in listed.items():
    path = manifest.parent / name
    if not path.is_file():
      raise StorageError(f'{path} is missing, though {manifest} lists it')
    if file_hash(path) != expected:
      raise StorageError(
        f'{path} does not match its SHA-256 in {manifest}: it was changed '
        'after it was saved'
      )
