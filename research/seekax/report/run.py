"""The results of a run: summary.json for programs, report.html for people.

Both are made from run.json and metrics.jsonl alone, without JAX, so they can be
made again at any time and on any machine.
"""

import json
import pathlib
import statistics

from seekax.files import write_atomically
from seekax.planning.parameters import count_parameters
from seekax.report import evidence, history, plots, provenance
from seekax.report.history import present, Run
from seekax.report.page import Page, render, Tile
from seekax.report.words import byte_size, counted, dollars, duration
from seekax.storage import workdir as workdir_lib
from seekax.storage.rows import Row


def write(workdir: pathlib.Path) -> None:
  """Writes summary.json and report.html from run.json and metrics.jsonl.

  Args:
    workdir: workdir of a run that logged a step; it may still be training.

  Raises:
    StorageError: there is no run, or it has no train row yet.
  """
  run = history.read(workdir)
  summary = _summarize(run)
  write_atomically(
    workdir / workdir_lib.SUMMARY, json.dumps(summary, indent=2) + '\n'
  )
  write_atomically(workdir / workdir_lib.REPORT, render(_page(run, summary)))


def _summarize(run: Run) -> dict[str, float | int | None]:
  """The fields of summary.json; None where the run has no value."""
  counts = count_parameters(run.model)
  last = run.train[-1]
  memory = present(
    row.get('peak_memory_bytes') for row in run.train + run.evals
  )
  violations = present(
    [*last.get('max_violation', []), *last.get('max_violation_mtp', [])]
  )
  heldout = run.evals[-1] if run.evals else {}
  return {
    'heldout_bits_per_byte': heldout.get('heldout_bits_per_byte'),
    'gzip_bits_per_byte': run.data.get('gzip_bits_per_byte'),
    'xz_bits_per_byte': run.data.get('xz_bits_per_byte'),
    'tokens_per_second': _median_rate(run),
    'train_seconds': last.get('seconds'),
    'compile_seconds': last.get('compile_seconds'),
    'peak_memory_bytes': max(memory, default=None),
    'parameters_total': counts.total,
    'parameters_activated': counts.activated,
    'parameters_mtp': counts.mtp,
    'max_violation_last': max(violations, default=None),
    'dollars': last.get('dollars'),
  }


def _median_rate(run: Run) -> float | None:
  """Tokens per second of the median step."""
  rates = [
    row['batch_tokens'] / seconds
    for row in run.train
    for seconds in row.get('step_seconds', [])
  ]
  return statistics.median(rates) if rates else None


def _page(run: Run, summary: Row) -> Page:
  sections = [
    evidence.bits_per_byte(run),
    evidence.optimization(run),
    evidence.expert_load(run),
    evidence.speed(run, summary),
    evidence.samples(run),
    provenance.config(run),
    provenance.making(run),
  ]
  step, steps = run.train[-1]['step'], run.setting('train', 'steps')
  return Page(
    kind='seekax training run',
    title=run.name,
    finding=_finding(run, summary),
    remark=f'Step {step:,} of {steps:,}: the run is not finished.'
    if steps and step < steps
    else '',
    tiles=_tiles(run, summary),
    sections=[section for section in sections if section],
    footer='Made from run.json and metrics.jsonl by seekax report.',
  )


def _finding(run: Run, summary: Row) -> str:
  """Describes the run in one sentence."""
  size = f'{plots.short(summary["parameters_total"])}-parameter '
  if run.model.uses_experts:
    activated = plots.short(summary['parameters_activated'])
    size += f'mixture of experts ({activated} activated)'
  else:
    size += 'dense transformer'
  effort = f'{plots.short(run.train[-1]["tokens"])} tokens'
  if summary['train_seconds']:
    effort += f' in {duration(summary["train_seconds"])}'
  bits = summary['heldout_bits_per_byte']
  if bits is None:
    return f'{size} trained on {effort}; no held-out text was scored yet.'
  text = 'held-out text'
  if not run.is_full(run.evals[-1]):
    text = f'part of the held-out text, {run.share(run.evals[-1])},'
  sentence = f'{size} reached {bits:.2f} bits per byte on {text} after {effort}'
  if summary['gzip_bits_per_byte'] is None:
    return sentence + '.'
  return sentence + (
    f'; gzip needs {summary["gzip_bits_per_byte"]:.2f}, '
    f'xz {summary["xz_bits_per_byte"]:.2f}.'
  )


def _tiles(run: Run, summary: Row) -> list[Tile]:
  def shown(key, form):
    return '–' if summary[key] is None else form(summary[key])

  last = run.train[-1]
  gzip = shown('gzip_bits_per_byte', '{:.2f}'.format)
  xz = shown('xz_bits_per_byte', '{:.2f}'.format)
  mtp = f', MTP {plots.short(summary["parameters_mtp"])} more'
  tiles = [
    Tile(
      'Held-out bits per byte',
      shown('heldout_bits_per_byte', '{:.3f}'.format),
      f'gzip {gzip}, xz {xz}',
    ),
    Tile(
      'Parameters',
      plots.short(summary['parameters_total']),
      f'{plots.short(summary["parameters_activated"])} activated'
      + (mtp if summary['parameters_mtp'] else ''),
    ),
    Tile(
      'Tokens trained on',
      plots.short(last['tokens']),
      counted(last['step'], 'step'),
    ),
    Tile('Training time', shown('train_seconds', duration), 'steps alone'),
    Tile(
      'Tokens per second',
      shown('tokens_per_second', '{:,.0f}'.format),
      'median'
      + (f', {last["mfu"]:.1%} of peak FLOP/s' if last.get('mfu') else ''),
    ),
    Tile(
      'Compilation', shown('compile_seconds', duration), 'at the last start'
    ),
    Tile('Peak memory', shown('peak_memory_bytes', byte_size), 'of the process')
    if run.on_cpu
    else Tile(
      'Peak memory', shown('peak_memory_bytes', byte_size), 'of the device'
    ),
  ]
  if run.model.uses_experts:
    tiles.append(
      Tile(
        'Largest max violation',
        shown('max_violation_last', '{:.2f}'.format),
        'over layers, last batch',
      )
    )
  if summary['dollars'] is not None:
    price = run.setting('train', 'price_per_device_hour')
    tiles.append(
      Tile(
        'Cost',
        shown('dollars', dollars),
        f'{dollars(price)} per device hour' if price else '',
      )
    )
  return tiles
