"""Rows of a metrics.jsonl: one JSON object per line, each with its step.

Nothing here needs JAX, so that a report can be made on any machine.
"""

from collections.abc import Iterator
import json
import os
import pathlib

from seekax.files import check_size, JsonObject, open_regular, write_atomically
from seekax.storage.manifest import StorageError

Row = JsonObject
# Rows with the load of every expert of 61 layers take a tenth of this.
_MAX_ROW_BYTES = 4_000_000


def read_rows(path: pathlib.Path) -> list[Row]:
  """Reads all rows, except an incomplete last one.

  The last row may be in the middle of being written, or cut by a crash. A
  missing file has no rows: the run has logged nothing yet.

  Raises:
    StorageError: a row before the last is broken, or it isn't a regular file.
  """
  if not os.path.lexists(path):
    return []
  rows: list[Row] = []
  broken = 0
  for number, line in enumerate(_lines(path), start=1):
    if broken:
      raise StorageError(
        f'{path}:{broken} is no JSON object; repair or delete that line'
      )
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      broken = number
      continue
    if not isinstance(row, dict):
      broken = number
      continue
    rows.append(row)
  return rows


def _lines(path: pathlib.Path) -> Iterator[str]:
  """Yields lines no longer than a row can be.

  Raises:
    StorageError: a line is longer, or it isn't a regular file or is too large.
  """
  descriptor, size = open_regular(path, StorageError)
  with open(descriptor, 'rb') as file:
    check_size(path, size, 'a metrics file', StorageError)
    number = 0
    while line := file.readline(_MAX_ROW_BYTES + 1):
      number += 1
      if len(line) > _MAX_ROW_BYTES:
        raise StorageError(
          f'{path}:{number} is longer than {_MAX_ROW_BYTES:,} bytes; repair or '
          'delete that line'
        )
      yield line.decode('utf-8', errors='replace')


def cut_back(path: pathlib.Path, step: int) -> None:
  """Drops the rows after a step, whose training is repeated."""
  kept = [row for row in read_rows(path) if row['step'] <= step]
  write_atomically(path, ''.join(json.dumps(row) + '\n' for row in kept))
