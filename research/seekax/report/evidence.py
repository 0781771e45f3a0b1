"""Results of a run, as sections of its page: curves, loads, samples."""

import dataclasses
import itertools
import math

from seekax.report import plots
from seekax.report.history import present, Run
from seekax.report.page import Sample, SampleBlock, Section
from seekax.report.words import time_unit
from seekax.storage.rows import Row

# Number of steps whose samples the page shows; samples/ has all of them.
_SAMPLE_STEPS = 6


def bits_per_byte(run: Run) -> Section:
  """Bits per byte over steps, time and cost, compared with gzip and xz."""
  unit, seconds = time_unit(run.train[-1].get('seconds') or 0)
  axes = [
    ('steps', lambda row: row['step']),
    (f'training time, {unit}', lambda row: _ratio(row.get('seconds'), seconds)),
  ]
  if run.train[-1].get('dollars') is not None:
    axes.append(('cost, dollars', lambda row: row.get('dollars')))
  levels = [
    plots.Level(f'{name} {run.data[key]:.2f}', run.data[key])
    for name, key in (
      ('gzip', 'gzip_bits_per_byte'),
      ('xz', 'xz_bits_per_byte'),
    )
    if run.data.get(key) is not None
  ]
  lead = 'Training: text of the batch, before it is learned from.'
  if run.evals:
    lead += ' ' + _heldout_words(run)
  if levels:
    lead += ' Dashed: gzip -9 and xz -9e on all held-out documents, each alone.'
  return Section(
    'Bits per byte',
    lead,
    [
      plots.lines(
        'bits per byte',
        label,
        _bits_series(run, place),
        levels,
        skip_start=True,
        width=plots.NARROW if len(axes) == 3 else plots.WIDTH,
      )
      for label, place in axes
    ],
  )


def _heldout_words(run: Run) -> str:
  """Explains the open and filled dots."""
  partial = [row for row in run.evals if not run.is_full(row)]
  full = [row for row in run.evals if run.is_full(row)]
  words = []
  if full:
    dots = 'Filled dots' if len(full) > 1 else 'Filled dot'
    words.append(f'{dots}: {run.share(full[-1])} held out.')
  if partial:
    words.append(
      f'Open dots, during training: {run.share(partial[-1])}, so their level '
      'is not quite that of the whole.'
    )
  return ' '.join(words)


def _bits_series(run: Run, place) -> list[plots.Series]:
  partial = [row for row in run.evals if not run.is_full(row)]
  full = [row for row in run.evals if run.is_full(row)]
  series = [
    _curve('training', run.train, 'bits_per_byte', plots.GREEN, place=place)
  ]
  for rows, name, marker in (
    (partial, '' if full else 'held-out, part', 'open'),
    (full, 'held-out, all' if partial else 'held-out', 'full'),
  ):
    curve = _curve(
      name, rows, 'heldout_bits_per_byte', plots.BLUE, place=place, smooth=False
    )
    series.append(dataclasses.replace(curve, marker=marker))
  return series


def _curve(
  name, rows, key, color, place=lambda row: row['step'], smooth=True, scale=1.0
) -> plots.Series:
  """A curve of one column of the rows."""
  points = [(place(row), _ratio(row.get(key), scale)) for row in rows]
  return plots.Series(name, points, color, smooth=smooth)


def _ratio(value: float | None, scale: float) -> float | None:
  return None if value is None else value / scale


def optimization(run: Run) -> Section:
  """Loss, gradient norm and learning rate over the steps."""
  losses = [_curve('main', run.train, 'loss', plots.BLUE)]
  if run.model.mtp_depth:
    losses.append(_curve('MTP', run.train, 'mtp_loss', plots.ORANGE))
  norm = _curve('norm', run.train, 'gradient_norm', plots.BLUE)
  clip = run.setting('optim', 'clip_norm')
  peak = max(present(row.get('learning_rate') for row in run.train), default=0)
  power = math.floor(math.log10(peak)) if peak else 0
  rate = _curve(
    'rate',
    run.train,
    'learning_rate',
    plots.BLUE,
    smooth=False,
    scale=10.0**power,
  )
  exponent = str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))
  return Section(
    'Optimization',
    'Faint: every logged step. Strong: running median; its last value is '
    'named.',
    [
      _third('loss, nats per token', losses, skip_start=True),
      _third(
        'gradient norm, before clipping',
        [norm],
        [plots.Level(f'clip {clip:g}', clip)] if clip else [],
        from_zero=True,
        skip_start=True,
      ),
      _third(f'learning rate, 10{exponent}', [rate], from_zero=True),
    ],
  )


def _third(title, curves, levels=(), **options) -> str:
  """A figure over the steps, narrow enough for a row of three."""
  return plots.lines(
    title, 'steps', curves, levels, width=plots.NARROW, **options
  )


def expert_load(run: Run) -> Section | None:
  """First and last load of every expert; None if the model has no experts."""
  if not run.model.uses_experts:
    return None
  first, depth = run.model.num_dense_layers, run.model.mtp_depth
  layers = [f'layer {first + i}' for i in range(run.model.num_expert_layers)]
  mtp = ['MTP'] if depth == 1 else [f'MTP {i + 1}' for i in range(depth)]
  figures = [
    plots.load_map(
      f'load at step {row["step"]:,}',
      [*row.get('layers', []), *row.get('mtp', [])],
      layers + mtp,
      width=plots.NARROW,
    )
    for row in run.loads[:1] + run.loads[1:][-1:]
  ]
  violations = _violations(run, layers, mtp)
  figures.append(
    _third('max violation', violations, from_zero=True, skip_start=True)
  )
  return Section(
    'Expert load',
    'Tokens that each expert was given, against the mean of its layer: white '
    'is balance. Max violation is the largest load over the mean, less 1 '
    '(running median); 0 is balance. Layers are counted from 0'
    + (f'; those before {first} have no experts.' if first else '.'),
    figures,
  )


def _violations(run: Run, layers, mtp) -> list[plots.Series]:
  """One curve per router."""
  names = layers + mtp
  # There is no room for more names beside the curves.
  if len(names) > 10:
    names = [layers[0]] + [''] * (len(layers) - 2) + [layers[-1]] + mtp
  colors = plots.shades(len(layers)) + [plots.ORANGE] * len(mtp)
  columns = [
    [*row.get('max_violation', []), *row.get('max_violation_mtp', [])]
    for row in run.train
  ]
  return [
    plots.Series(
      name,
      [
        (row['step'], column[i])
        for row, column in zip(run.train, columns, strict=True)
        if i < len(column)
      ],
      color,
      smooth=True,
    )
    for i, (name, color) in enumerate(zip(names, colors, strict=True))
  ]


def speed(run: Run, summary: Row) -> Section:
  """Tokens per second and peak memory over the steps."""
  rate = summary['tokens_per_second']
  median = [plots.Level(f'median\n{plots.short(rate)}', rate)] if rate else []
  rates = _curve('', run.train, 'tokens_per_second', plots.BLUE)
  rows = sorted(run.train + run.evals, key=lambda row: row['step'])
  peaks = itertools.accumulate(
    (row.get('peak_memory_bytes') or 0 for row in rows), max
  )
  memory = plots.Series(
    'peak',
    [(row['step'], b / 2**30) for row, b in zip(rows, peaks, strict=True)],
  )
  return Section(
    'Speed and memory',
    'A point of the speed is the median since the line before; evaluation, '
    'samples and saving are left out.',
    [
      plots.lines(
        'tokens per second', 'steps', [rates], median, from_zero=True
      ),
      plots.lines('peak memory so far, GiB', 'steps', [memory], from_zero=True),
    ],
  )


def samples(run: Run) -> Section | None:
  """The model's text at the newest steps; None if there is none yet."""
  groups: dict[int, list[Sample]] = {}
  for row in run.samples:
    groups.setdefault(row['step'], []).append(
      Sample(row.get('prompt') or '', row.get('text') or '')
    )
  if not groups:
    return None
  newest = sorted(groups, reverse=True)[:_SAMPLE_STEPS]
  temperature = run.setting('eval', 'sample_temperature')
  lead = "The coloured beginning is the prompt, the rest is the model's"
  if temperature is not None:
    lead += f', at temperature {temperature:g}'
  if len(groups) > len(newest):
    lead += f'. The newest {len(newest)} of {len(groups)}'
  return Section(
    'Samples',
    lead + '.',
    samples=[SampleBlock(f'Step {step:,}', groups[step]) for step in newest],
  )
