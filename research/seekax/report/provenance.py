"""The origin of a run, as sections of its page: config, data, machine."""

import dataclasses
import json

from seekax.configuration.config import GROUPS
from seekax.report.history import Run
from seekax.report.page import Entry, Section, Table
from seekax.report.words import counted
from seekax.storage.rows import Row


def config(run: Run) -> Section:
  """Every key of the config; overridden ones are marked."""
  overrides = run.info.get('overrides') or {}
  tables = []
  for group, values in run.info['config'].items():
    fields = dataclasses.fields(GROUPS[group]) if group in GROUPS else ()
    meaning = {field.name: field.metadata.get('help', '') for field in fields}
    rows = [
      Entry(
        key,
        json.dumps(value, ensure_ascii=False),
        meaning.get(key, ''),
        marked=f'{group}.{key}' in overrides,
      )
      for key, value in values.items()
    ]
    changed = sum(row.marked for row in rows)
    tables.append(
      Table(
        group,
        rows,
        counted(len(rows), 'key')
        + (f', {changed} overridden' if changed else ''),
        head=('key', 'value', 'meaning'),
        open=changed > 0,
      )
    )
  return Section(
    'Config', 'Coloured: overridden on the command line.', tables=tables
  )


def making(run: Run) -> Section:
  """Command, commit, machine and data; unknown values are left out."""
  info, data = run.info, run.data
  machine = info.get('platform') or {}
  hardware = [
    before + str(machine[key]) + after
    for key, before, after in (
      ('device', f'{machine.get("num_devices", 1)} × ', ''),
      ('system', '', ''),
      ('cpus', '', ' CPU cores'),
    )
    if machine.get(key)
  ]
  versions = info.get('versions') or {}
  text = [
    Entry('source', str(data.get('source', ''))),
    Entry('licence', str(data.get('licence', ''))),
    Entry('trained on', _documents(data, 'train')),
    Entry('held out', _documents(data, 'heldout')),
    Entry(
      'bytes per token',
      f'{data["bytes_per_token"]:.3f}' if data.get('bytes_per_token') else '',
    ),
    Entry('fingerprint', str(data.get('fingerprint', '')), code=True),
  ]
  process = [
    Entry('command', info.get('command') or '', code=True),
    Entry('commit', info.get('commit') or '', code=True),
    Entry('started from', info.get('started_from') or '', code=True),
    Entry('machine', ', '.join(hardware)),
    Entry('versions', ', '.join(f'{k} {v}' for k, v in versions.items())),
  ]
  tables = [
    Table(title, [row for row in rows if row.value])
    for title, rows in (('Run', process), ('Data', text))
  ]
  return Section(
    'How it was made', tables=[table for table in tables if table.rows]
  )


def _documents(data: Row, part: str) -> str:
  documents, size = data.get(f'{part}_documents'), data.get(f'{part}_bytes')
  if documents is None or size is None:
    return ''
  return f'{counted(documents, "document")}, {counted(size, "byte")}'
