"""Rows of a metrics.jsonl: one JSON object a line, each with its step.

Nothing here needs JAX, so that a report can be made on any machine.
"""

import json
import pathlib
from typing import Any

from seekax.storage.manifest import StorageError, write_atomically

Row = dict[str, Any]


def read_rows(path: pathlib.Path) -> list[Row]:
  """All rows but a last one that is being written or that a crash cut short.

  No file means no rows: a run that logged nothing yet has none.

  Raises:
    StorageError: a row before the last one is broken.
  """
  if not path.is_file():
    return []
  rows = []
  lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      if number < len(lines):
        raise StorageError(
          f'{path}:{number} is no JSON; repair or delete that line'
        ) from error
  return rows


def cut_back(path: pathlib.Path, step: int) -> None:
  """Drops the rows after a step: what follows is trained again."""
  kept = [row for row in read_rows(path) if row['step'] <= step]
  write_atomically(path, ''.join(json.dumps(row) + '\n' for row in kept))
