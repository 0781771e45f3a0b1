"""A longer context without training anew: YaRN against simpler scalings.

Claim: stretched 8 times and trained a little more, YaRN finds a passkey
anywhere in the new context and is no worse than position interpolation
(linear) or a larger base (ntk); without scaling a model fails beyond its
training length.
Paper: YaRN (arXiv 2309.00071), tables 1 to 5; DeepSeek-V3 (arXiv 2412.19437),
section 4.3 and figure 8.
Command: python experiments/yarn/yarn_extension.py
Cost: not measured; the full run has not been made yet.

Here: 3 dense layers of width 64 with MLA, 400 steps of 2,048 tokens at length
64: text of Python's library in which a marker and four digits recur. Then the
same weights at length 512, as they are (zero-shot) and after 40 steps of 2,048
tokens; 2 paired seeds. The passkey stands once, at one of 5 depths, in 64 to
512 tokens; a digit counts if it is the likeliest one of all tokens after those
before it. Loss is that of held-out rows of 512 tokens.

Fixed before the first run: an order is reproduced if the mean difference over
seeds has the paper's sign and is above two standard errors, refuted if it has
the other sign and is, inconclusive (nan) between; "finds" is 95 %.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools
import pathlib
import sys

from absl import app
import jax
from matplotlib import figure as figure_lib
import numpy as np

# Scripts are run by path: what they share lies one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import haystack

import measurements
from seekax.config import Config
from seekax.data.pipeline import Batch
from seekax.training.state import start_from, TrainState
import small_runs
import verdicts

_STEM = 'yarn_extension'
_FACTOR = 8
METHODS = ('none', 'linear', 'ntk', 'yarn')
_MARKER, _DIGITS = 1, 4  # The marker is no character of any text.
_FOUND = 0.95
_FULL = small_runs.Size(seeds=2, steps=400, rows=32, heldout=4)
_EXTENSION_STEPS = 40

small_runs.define_flags(__file__)


def _hide(row: np.ndarray, key: np.ndarray, start: int) -> None:
  row[start] = _MARKER
  row[start + 1 : start + 1 + _DIGITS] = key


def _key(rng: np.random.Generator) -> np.ndarray:
  return rng.integers(ord('0'), ord('9') + 1, size=_DIGITS)


def passkey_rows(
  rng: np.random.Generator, count: int, length: int, heldout: bool = False
) -> np.ndarray:
  """Text [B, L + 1] in which the row's key recurs, every 13 tokens or so."""
  tokens = small_runs.draw_rows(rng, count, length, ('text',), heldout).tokens
  for row in tokens:
    key, start = _key(rng), rng.integers(8)
    while start + _DIGITS < len(row):
      _hide(row, key, start)
      start += _DIGITS + 1 + rng.integers(2, 16)
  return tokens


def needle_rows(
  rng: np.random.Generator, count: int, length: int, depth: float
) -> list[np.ndarray]:
  """Text [L] with the key once, and again at the end."""
  tokens = small_runs.draw_rows(
    rng, count, length - 1, ('text',), heldout=True
  ).tokens
  keys = [np.append(_MARKER, _key(rng)) for _ in tokens]
  return [
    haystack.hide(row, key, key, depth)
    for row, key in zip(tokens, keys, strict=True)
  ]


def batches(rows: int, length: int, steps: int, seed: int) -> Iterator[Batch]:
  rng = np.random.default_rng(seed)
  for _ in range(steps):
    yield small_runs.batch_of(passkey_rows(rng, rows, length))


def extended(method: str, size: small_runs.Size) -> Config:
  """The run that goes on at `_FACTOR` times the length."""
  rows = max(size.rows // _FACTOR, 1)
  longer = dataclasses.replace(
    size, length=size.length * _FACTOR, rows=rows, steps=_EXTENSION_STEPS
  )
  if size == small_runs.SMOKE:
    longer = dataclasses.replace(longer, steps=2)
  rotary = dict(rope_factor=float(_FACTOR), rope_original_length=size.length)
  if method == 'ntk':
    width = 16  # rope_head_dim of `model_of`.
    rotary = dict(rope_theta=10000.0 * _FACTOR ** (width / (width - 2)))
  elif method != 'none':
    rotary['rope_scaling'] = method
  model = small_runs.model_of(longer, ffn='dense', **rotary)
  return small_runs.config_of(longer, model, rate=1e-3)


def measure(
  config: Config, state: TrainState, size: small_runs.Size, prefix: str
) -> measurements.Numbers:
  """Held-out loss at full length, and the grid of passkeys."""
  length = config.model.context_length
  rng = np.random.default_rng(10_000)
  heldout = [
    small_runs.Rows(
      passkey_rows(rng, config.data.batch_size, length, heldout=True),
      np.zeros(0),
      np.zeros(0),
    )
    for _ in range(size.heldout)
  ]
  loss, _ = small_runs.evaluate(config, state, heldout)
  numbers, count = {f'{prefix} loss': loss}, 16
  shortest = size.length
  while shortest <= length:
    for depth in haystack.DEPTHS:
      numbers[f'{prefix} passkey {shortest} {depth:g}'] = haystack.share_found(
        config.model,
        state.params,
        state.router_bias,
        needle_rows(rng, count, shortest, depth),
        _DIGITS,
        padded=length,
      )
    shortest *= 2
  longest = [x for name, x in numbers.items() if f'key {length} ' in name]
  numbers[f'{prefix} passkey'] = float(np.mean(longest))
  return numbers


@functools.cache
def _pretrained(seed: int, size: small_runs.Size):
  """Weights on the host after training at the short length."""
  config = small_runs.config_of(size, small_runs.model_of(size, ffn='dense'))
  state, metrics = small_runs.train(
    config,
    small_runs.initial_state(config, seed),
    batches(size.rows, size.length, size.steps, seed),
  )
  small_runs.say('short', seed, loss=float(metrics[-1].loss))
  return jax.device_get(state.params)


def train(
  method: str, seed: int, size: small_runs.Size
) -> measurements.Numbers:
  """Stretches the seed's weights; measures before and after training on."""
  config = extended(method, size)
  params = jax.device_put(_pretrained(seed, size))
  state = start_from(config, params, {})
  numbers = measure(config, state, size, 'zero-shot')
  state, _ = small_runs.train(
    config,
    state,
    batches(
      config.data.batch_size,
      config.data.sequence_length,
      config.train.steps,
      seed + 100,
    ),
  )
  numbers |= measure(config, state, size, 'trained')
  shown = {name: x for name, x in numbers.items() if len(name.split()) == 2}
  small_runs.say(method, seed, **shown)
  return numbers


def all_claims(
  measured: dict[str, measurements.Numbers],
) -> list[verdicts.Claim]:
  order = functools.partial(small_runs.order, measured)
  if 'none, seed 0' not in measured:  # The smoke form.
    return [
      order('before, after', 'yarn', 'yarn', 'zero-shot loss', 'trained loss')
    ]
  found = small_runs.values(measured, 'yarn', 'trained passkey').mean()
  claims = [
    verdicts.Claim(
      'yarn, trained: passkey at 8 times the length, 95 %',
      '',
      '1',
      lambda: float(found >= _FOUND),
      0.0,
      f'{100 * found:.1f} %',
    )
  ]
  for stage, other in itertools.product(('zero-shot', 'trained'), METHODS[:3]):
    claims += [
      order(
        f'{stage}: loss of {other} above yarn', other, 'yarn', f'{stage} loss'
      ),
      order(
        f'{stage}: passkey of yarn above {other}',
        'yarn',
        other,
        f'{stage} passkey',
      ),
    ]
  return claims


def draw(
  measured: dict[str, measurements.Numbers],
  rows: list[verdicts.Row],
  path: pathlib.Path,
) -> None:
  """Share of digits found, depth by length, of every method and stage."""
  figure = figure_lib.Figure(figsize=(12, 5.6), layout='constrained')
  panels = figure.subplots(2, len(METHODS), squeeze=False)
  names = next(iter(measured.values()))
  lengths = sorted({int(x.split()[2]) for x in names if len(x.split()) == 4})
  shade = None
  for line, stage in enumerate(('zero-shot', 'trained')):
    for axes, method in zip(panels[line], METHODS, strict=True):
      grid = [
        [
          small_runs.values(
            measured, method, f'{stage} passkey {length} {depth:g}'
          ).sum()
          / max(len(small_runs.values(measured, method, f'{stage} loss')), 1)
          for length in lengths
        ]
        for depth in haystack.DEPTHS
      ]
      shade = haystack.draw_grid(axes, grid, lengths)
      axes.set_title(f'{method}, {stage}', loc='left', fontsize=10)
  figure.supxlabel('tokens of context (trained at the first)')
  figure.supylabel('depth of the passkey')
  small_runs.add_title(figure, 'Context times 8', rows)
  figure.colorbar(shade, ax=panels, label='digits found')
  figure.savefig(path, dpi=120)


def run(outdir: pathlib.Path, size: small_runs.Size) -> None:
  """Trains what is missing, judges and draws."""
  methods = ['yarn'] if size == small_runs.SMOKE else METHODS
  small_runs.measure_and_publish(
    functools.partial(train, size=size),
    [(m, seed) for seed in range(size.seeds) for m in methods],
    all_claims,
    draw,
    outdir,
    _STEM,
  )


def main(argv: Sequence[str]) -> None:
  small_runs.run_as_asked(argv, run, _FULL, small_runs.SMOKE)


if __name__ == '__main__':
  app.run(main)
