"""Reads a run from its workdir: run.json and the rows of metrics.jsonl."""

from collections.abc import Iterable
import dataclasses
import pathlib
from typing import Any

from seekax.configuration.errors import ConfigError
from seekax.configuration.model import ModelConfig
from seekax.files import JsonObject
from seekax.report.words import byte_size, counted
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import StorageError
from seekax.storage.rows import read_rows, Row


@dataclasses.dataclass(frozen=True)
class Run:
  """The contents of a run's workdir; rows are in the order of the steps."""

  name: str
  info: JsonObject  # run.json
  model: ModelConfig
  train: list[Row]
  evals: list[Row]
  loads: list[Row]
  samples: list[Row]

  @property
  def data(self) -> JsonObject:
    return self.info.get('data') or {}

  @property
  def on_cpu(self) -> bool:
    return (self.info.get('platform') or {}).get('device', 'cpu') == 'cpu'

  def is_full(self, row: Row) -> bool:
    """Whether an evaluation used all held-out text, not only a part."""
    most = max(row.get('heldout_bytes') or 0 for row in self.evals)
    return (row.get('heldout_bytes') or 0) >= self.data.get(
      'heldout_bytes', most
    )

  def share(self, row: Row) -> str:
    """Says in words how much text an evaluation used."""
    documents, size = row.get('heldout_documents'), row.get('heldout_bytes')
    if documents is None or size is None:
      return 'documents'
    words = f'{counted(documents, "document")} ({byte_size(size)})'
    return f'all {words}' if self.is_full(row) else words

  def setting(self, group: str, key: str, default: object = None) -> Any:
    """A value from the config; the default if an older run lacks it."""
    return self.info['config'].get(group, {}).get(key, default)


def read(workdir: pathlib.Path) -> Run:
  """Reads a run that has logged a step; it may still be training.

  Raises:
    StorageError: there is no run, or it has no train row yet.
  """
  info = workdir_lib.read_run(workdir)
  try:
    # Only the model's part of the config must be valid in this version.
    model = ModelConfig(**info['config']['model'])
  except (KeyError, TypeError, ConfigError) as error:
    raise StorageError(f'{workdir / workdir_lib.RUN}: {error}') from error
  rows = {'train': [], 'eval': [], 'load': [], 'sample': []}
  for row in read_rows(workdir / workdir_lib.METRICS):
    rows.setdefault(row['kind'], []).append(row)
  if not rows['train']:
    raise StorageError(
      f'{workdir} has no train row in {workdir_lib.METRICS} yet; let the run '
      'log a step'
    )
  return Run(
    name=workdir.resolve().name,
    info=info,
    model=model,
    train=rows['train'],
    evals=rows['eval'],
    loads=rows['load'],
    samples=rows['sample'],
  )


def present(values: Iterable[Any]) -> list[Any]:
  """The values that are not None; older rows lack some."""
  return [value for value in values if value is not None]
