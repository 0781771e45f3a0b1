"""Which scale an FP8 value should share with how many others.

Claim: one scale per 1 x 128 tile takes up outliers that a scale per tensor
can't, with E4M3 everywhere; gradients with a scale per 128 x 128 block don't
train, because outliers go by token.
Paper: DeepSeek-V3 (arXiv 2412.19437), section 3.3.2 and appendix B.2.
Command: python experiments/deepseek_v3/fp8_granularity.py
Cost: seconds of a CPU. Nothing is trained: see fp8_training_gap.py for that.

Outliers: 10 of 512 x 2048 normal values are multiplied by a ratio; the error is
that of the other values, as a share of their Frobenius norm. Rows: every row is
multiplied by exp(4 z), z normal, so that rows differ in size as the gradients
of tokens do; the error is the median over rows.

The paper prints no number for these. Reproduced: with outliers of 1e5 the error
of tiles is below that of blocks, and that below the one of a scale per tensor;
E4M3 tiles are nearer than E5M2 tiles; on rows of unequal size tiles are nearer
than blocks, and more than 1 % of the rows become all zeros under blocks, none
under tiles. Refuted: the opposite. A ratio of 100 is reported but not judged:
E4M3 is a floating-point format and covers the first orders of magnitude by
itself. (Thresholds were fixed before the first run.)
"""

from collections.abc import Sequence
import functools
import pathlib
import sys

from absl import app
import jax
import numpy as np

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import script
from seekax.ops import block_fp8
import verdicts

_SHAPE = (512, 2048)
_OUTLIERS = 10
_RATIOS = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
_FAR = 100_000
_SIGMA = 4.0
_TILINGS = {'tile': (1, 128), 'block': (128, 128), 'tensor': (0, 0)}

_rounded = jax.jit(block_fp8.rounded, static_argnums=1)


def rounded(x: np.ndarray, scaling: str, kind: str) -> np.ndarray:
  """x as FP8 holds it."""
  tiling = block_fp8.Tiling(*_TILINGS[scaling], block_fp8.FORMATS[kind])
  return np.asarray(_rounded(x.astype(np.float32), tiling), np.float64)


def outlier_errors(scaling: str, kind: str) -> script.Numbers:
  """The error in percent, for every ratio of outliers."""
  rng = np.random.default_rng(0)
  plain = rng.standard_normal(_SHAPE).astype(np.float32).astype(np.float64)
  is_outlier = np.zeros(plain.size, bool)
  is_outlier[rng.choice(plain.size, _OUTLIERS, replace=False)] = True
  others = ~is_outlier.reshape(_SHAPE)
  errors = {}
  for ratio in _RATIOS:
    x = np.where(others, plain, plain * ratio)
    difference = (rounded(x, scaling, kind) - x)[others]
    share = np.linalg.norm(difference) / np.linalg.norm(x[others])
    errors[f'outliers of {ratio}'] = 100 * float(share)
  return errors


def row_errors(scaling: str, kind: str) -> script.Numbers:
  """In percent: the median row's error, and the rows that become zeros."""
  rng = np.random.default_rng(1)
  x = rng.standard_normal(_SHAPE)
  x *= np.exp(_SIGMA * rng.standard_normal((_SHAPE[0], 1)))
  x = x.astype(np.float32).astype(np.float64)
  found = rounded(x, scaling, kind)
  share = np.linalg.norm(found - x, axis=1) / np.linalg.norm(x, axis=1)
  return {
    'rows, median error': 100 * float(np.median(share)),
    'rows that vanish': 100 * float(np.mean(~found.any(axis=1))),
  }


def job(scaling: str, kind: str) -> script.Numbers:
  return {**outlier_errors(scaling, kind), **row_errors(scaling, kind)}


def all_claims(found: script.Measured) -> list[verdicts.Claim]:
  """The orders of errors: 1 where the order is the paper's."""
  tile, block, tensor = (found[f'{name}, e4m3'] for name in _TILINGS)
  wide = found['tile, e5m2']
  far, rows = f'outliers of {_FAR}', 'rows, median error'
  vanish = 'rows that vanish'
  orders = [
    ('outliers of 1e5: tiles below blocks', tile[far], block[far]),
    ('outliers of 1e5: blocks below tensor', block[far], tensor[far]),
    ('tiles: E4M3 below E5M2', tile['outliers of 1'], wide['outliers of 1']),
    ('rows of unequal size: tiles below blocks', tile[rows], block[rows]),
    ('rows lost in blocks: above 1 %', 1.0, block[vanish]),
  ]
  return [
    *(
      verdicts.holds(name, less < more, f'{less:.3g} % < {more:.3g} %')
      for name, less, more in orders
    ),
    verdicts.Claim(
      'rows lost in tiles', '%', '0', lambda: tile[vanish], tolerance=0.0
    ),
  ]


def draw(
  found: script.Measured, rows: list[verdicts.Row], path: pathlib.Path
) -> None:
  """Errors by ratio, and errors and losses of rows."""
  figure = script.new_figure(11, 4.6)
  left, right = figure.subplots(1, 2)
  for name, numbers in found.items():
    left.plot(
      _RATIOS,
      [numbers[f'outliers of {ratio}'] for ratio in _RATIOS],
      marker='o',
      linestyle='-' if 'e4m3' in name else ':',
      label=name,
    )
  left.set_xscale('log')
  left.set_yscale('log')
  left.set_xlabel(f'ratio of {_OUTLIERS} outliers to {_SHAPE[0]} x {_SHAPE[1]}')
  left.set_ylabel('error of the others, %')
  left.legend(frameon=False)
  names = list(found)
  places = range(len(names))
  for shift, what in ((-0.2, 'rows, median error'), (0.2, 'rows that vanish')):
    heights = [found[name][what] for name in names]
    bars = right.bar([x + shift for x in places], heights, 0.38, label=what)
    right.bar_label(bars, fmt='%.3g', fontsize=8)
  right.set_xticks(places, [name.replace(', ', '\n') for name in names])
  right.set_ylabel('%')
  right.set_title('Rows multiplied by exp(4 z)', loc='left')
  right.legend(frameon=False)
  title = f'Tiles, blocks, tensors: {verdicts.reproduced(rows)}'
  script.save_figure(figure, title, path)


def run(stem: pathlib.Path, _) -> None:
  """Measures what is missing, judges and draws."""
  jobs = {
    f'{scaling}, {kind}': functools.partial(job, scaling, kind)
    for scaling in _TILINGS
    for kind in block_fp8.FORMATS
  }
  verdicts.publish_jobs(jobs, 'errors', all_claims, draw, stem)


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(argv, run)


if __name__ == '__main__':
  app.run(main)
