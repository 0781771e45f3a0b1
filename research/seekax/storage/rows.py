"""Rows of a metrics.jsonl: one JSON object a line, each with its step.

Nothing here needs JAX, so that a report can be made on any machine.
"""

import json
import pathlib
from typing import Any

from seekax.storage.manifest import write_atomically

Row = dict[str, Any]


def read_rows(path: pathlib.Path) -> list[Row]:
  """All rows but a last one that is being written or that a crash cut short.

  No file means no rows: a run that logged nothing yet has none.
  """
  if not path.is_file():
    return []
  rows = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  return rows


def cut_back(path: pathlib.Path, step: int) -> None:
  """Drops the rows after a step: what follows is trained again."""
  kept = [row for row in read_rows(path) if row['step'] <= step]
  write_atomically(path, ''.join(json.dumps(row) + '\n' for row in kept))
