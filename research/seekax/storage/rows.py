"""Rows of a metrics.jsonl: one JSON object a line, each with its step.

Nothing here needs JAX, so that a report can be made on any machine.
"""

from collections.abc import Iterator
import json
import os
import pathlib
from typing import Any

from seekax.files import check_size, open_regular, write_atomically
from seekax.storage.manifest import StorageError

Row = dict[str, Any]
# Rows with the load of every expert of 61 layers have a tenth of that.
_MAX_ROW_BYTES = 4_000_000


def read_rows(path: pathlib.Path) -> list[Row]:
  """All rows but a last one that is being written or that a crash cut short.

  No file means no rows: a run that logged nothing yet has none.

  Raises:
    StorageError: a row before the last one is broken, or it is no file.
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
  """Lines that aren't longer than any row is.

  Raises:
    StorageError: one is, or it is no file, or too large.
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
  """Drops the rows after a step: what follows is trained again."""
  kept = [row for row in read_rows(path) if row['step'] <= step]
  write_atomically(path, ''.join(json.dumps(row) + '\n' for row in kept))
