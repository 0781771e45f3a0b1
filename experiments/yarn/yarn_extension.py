"""A longer context without training anew: YaRN against simpler scalings.

Claim: with s = 40, 4K tokens become 32K and then 128K in two stages of 1,000
steps, and a needle is found anywhere; YaRN is no worse than position
interpolation (linear) or a larger base (ntk); without scaling a model fails
beyond its training length.
Paper: YaRN (arXiv 2309.00071), tables 1 to 5; DeepSeek-V3 (arXiv 2412.19437),
section 4.3 and figure 8.
Command: python experiments/yarn/yarn_extension.py
Cost: 19 minutes on two cores beside other work, 14 of processor time.

Setting: a sixty-fourth of V3's lengths (64, 512, 2,048 tokens), its s, alpha
and beta. (256, 2K and 8K exist as configs, v3_extend_32k.py and
v3_extend_128k.py as `:tiny`, but a step at 8K took 13 s, too long for four
methods.) 3 dense layers of width 64 with MLA, 1,500 steps of 2,048 tokens of
Python's library in which a marker and the four digits of a row's passkey recur.
The same weights are measured with each scaling as they are (zero-shot), after
60 steps of 4 x 512 and after 60 more of 1 x 2,048 tokens; 3 paired seeds. The
passkey stands once, at one of 5 depths, in 64 to 2,048 tokens, and is asked at
the end; a digit counts if it is the likeliest of all tokens after those before
it. Losses are measured on held-out text of the same kind.

Fixed before the first full run: an order is reproduced if the mean difference
over seeds has the paper's sign and exceeds two standard errors, refuted if it
has the other sign and exceeds them, inconclusive (nan) between; "finds" is 95 %
of the digits, mean of the whole grid. Before it, runs of the short training
alone chose batch, steps, rate, initial weights and the gaps between passkeys,
so that passkeys are learned at 64 tokens; the stages were not tried.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools
import pathlib
import sys
from typing import Any

from absl import app
import jax
import numpy as np

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import haystack

import comparison
import script
from seekax.configuration.config import Config
from seekax.configuration.model import ModelConfig
from seekax.data.pipeline import Batch
from seekax.model.weights import Weights
from seekax.training.state import start_from, TrainState
import small_corpus
import small_runs
import verdicts

_FACTOR = 40.0  # s
METHODS = ('none', 'linear', 'ntk', 'yarn')
_MARKER, _DIGITS = 1, 4  # The marker is no character of any text.
_FOUND = 0.95
_PROMPTS = 8  # per depth and length
ZERO_SHOT, LONGER, LONG = 'zero-shot', 'first stage', 'both stages'
STAGES = (ZERO_SHOT, LONGER, LONG)


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is trained."""

  short: small_runs.Size = small_runs.Size(seeds=3, steps=1500, rows=32)
  stretches: tuple[int, ...] = (
    8,
    32,
  )  # the length of each stage over `short`'s
  steps: int = 60  # per stage
  lengths: tuple[int, ...] = (64, 256, 512, 1024, 2048)  # tokens of prompts


_SMOKE = Size(small_runs.SMOKE, stretches=(2,), steps=2, lengths=(16, 32))


def _hide(row: np.ndarray, key: np.ndarray, start: int) -> None:
  row[start] = _MARKER
  row[start + 1 : start + 1 + _DIGITS] = key


def _key(rng: np.random.Generator) -> np.ndarray:
  return rng.integers(ord('0'), ord('9') + 1, size=_DIGITS)


def passkey_rows(
  rng: np.random.Generator, count: int, length: int, heldout: bool = False
) -> np.ndarray:
  """Text [B, L + 1] in which the row's key recurs, at gaps of all sizes."""
  tokens = small_corpus.draw_rows(rng, count, length, ('text',), heldout).tokens
  for row in tokens:
    key, start = _key(rng), int(rng.integers(8))
    while start + _DIGITS < len(row):
      _hide(row, key, start)
      start += _DIGITS + 1 + int(length ** rng.random()) - 1
  return tokens


def needle_rows(
  rng: np.random.Generator, count: int, length: int, depth: float
) -> list[np.ndarray]:
  """Text [L] with the key once, and again at the end."""
  tokens = small_corpus.draw_rows(
    rng, count, length - 1, ('text',), heldout=True
  ).tokens
  keys = [np.append(_MARKER, _key(rng)) for _ in tokens]
  return [
    haystack.hide(row, key, key, depth)
    for row, key in zip(tokens, keys, strict=True)
  ]


def batches(rows: int, length: int, steps: int, seed: int) -> Iterator[Batch]:
  """`steps` batches of passkey rows."""
  rng = np.random.default_rng(seed)
  for _ in range(steps):
    yield small_corpus.batch_of(passkey_rows(rng, rows, length))


def model_of(size: small_runs.Size, **rotary: Any) -> ModelConfig:
  """A dense model whose initial weights suit these sizes."""
  return small_runs.model_of(size, ffn='dense', init_std=0.1, **rotary)


def rotary_of(method: str, size: Size) -> dict[str, Any]:
  """The fields of the model's config that a method sets."""
  if method == 'ntk':
    width = model_of(size.short).rope_head_dim
    return dict(rope_theta=10000.0 * _FACTOR ** (width / (width - 2)))
  if method == 'none':
    return {}
  return dict(
    rope_scaling=method,
    rope_factor=_FACTOR,
    rope_original_length=size.short.length,
  )


def stage_of(method: str, stretch: int, size: Size) -> Config:
  """A run at `stretch` times the short length, on as many tokens per step."""
  length, rows = size.short.length * stretch, size.short.rows // stretch
  longer = dataclasses.replace(
    size.short, length=length, rows=max(rows, 1), steps=size.steps
  )
  model = model_of(longer, **rotary_of(method, size))
  return small_runs.config_of(longer, model, rate=1e-3)


def loss_at(config: Config, state: TrainState, length: int) -> float:
  """The loss on 8,192 held-out tokens in rows of `length`, 4 rows at least."""
  rng = np.random.default_rng(10_000)
  rows = [
    small_corpus.Rows(
      passkey_rows(rng, 4, length, heldout=True), np.zeros(0), np.zeros(0)
    )
    for _ in range(max(8192 // (4 * length), 1))
  ]
  return small_runs.evaluate(config, state, rows)[0]


def measure(
  config: Config, state: TrainState, size: Size, stage: str
) -> script.Numbers:
  """Losses and the grid of passkeys, named after the stage."""
  numbers, rng = {}, np.random.default_rng(10_000)
  for length in size.lengths:
    for depth in haystack.DEPTHS:
      numbers[f'{stage}, {length} {depth:g}'] = haystack.share_found(
        config.model,
        state.weights,
        needle_rows(rng, _PROMPTS, length, depth),
        _DIGITS,
      )
  shares = np.array(list(numbers.values())).reshape(len(size.lengths), -1)
  return numbers | {
    f'{stage}, passkey': float(shares.mean()),
    f'{stage}, passkey within': float(shares[0].mean()),
    f'{stage}, passkey beyond': float(shares[1:].mean()),
    f'{stage}, short loss': loss_at(config, state, size.lengths[0]),
    f'{stage}, long loss': loss_at(config, state, size.lengths[-1]),
  }


@functools.cache
def _pretrained(seed: int, size: small_runs.Size):
  """Weights on the host after training at the short length."""
  config = small_runs.config_of(size, model_of(size), 5e-3)
  state, metrics = small_runs.train(
    config,
    small_runs.initial_state(config, seed),
    batches(size.rows, size.length, size.steps, seed),
  )
  small_runs.say('short', seed, loss=float(metrics[-1].loss))
  return jax.device_get(state.params)


def train(method: str, seed: int, size: Size) -> script.Numbers:
  """Stretches the seed's weights; measures before and after every stage."""
  configs = [stage_of(method, stretch, size) for stretch in size.stretches]
  params = jax.device_put(_pretrained(seed, size.short))
  state = start_from(configs[0], Weights(params, {}))
  numbers = measure(configs[-1], state, size, ZERO_SHOT)
  for stage, config in zip(STAGES[1:], configs, strict=False):
    data = config.data
    state, _ = small_runs.train(
      config,
      start_from(config, state.weights),
      batches(data.batch_size, data.sequence_length, size.steps, seed + 100),
    )
    numbers |= measure(configs[-1], state, size, stage)
  shown = {k: x for k, x in numbers.items() if k.endswith(('passkey', 'loss'))}
  small_runs.say(method, seed, **shown)
  return numbers


def all_claims(measured: script.Measured) -> list[verdicts.Claim]:
  """Whether YaRN finds the passkey, and how it compares with other methods."""
  order = functools.partial(comparison.order, measured)
  if 'none, seed 0' not in measured:  # The smoke form.
    return [order('none', 'none', 'none', f'{ZERO_SHOT}, passkey')]
  found = comparison.values(measured, 'yarn', f'{LONG}, passkey').mean()
  within, beyond = (
    f'{ZERO_SHOT}, passkey {where}' for where in ('within', 'beyond')
  )
  claims = [
    verdicts.holds(
      'yarn, both stages: passkey in the whole grid, 95 %',
      found >= _FOUND,
      f'{100 * found:.1f} %',
    ),
    order(
      'none, zero-shot: passkey within above beyond',
      'none',
      'none',
      within,
      beyond,
    ),
  ]
  for stage, other in itertools.product((ZERO_SHOT, LONG), METHODS[:3]):
    claims += [
      order(
        f'{stage}: passkey beyond of yarn above {other}',
        'yarn',
        other,
        f'{stage}, passkey beyond',
      ),
      order(
        f'{stage}: long loss of {other} above yarn',
        other,
        'yarn',
        f'{stage}, long loss',
      ),
    ]
  claims.append(
    order(
      f'{LONG}: short loss of linear above yarn',
      'linear',
      'yarn',
      f'{LONG}, short loss',
    )
  )
  return claims


def draw(
  measured: script.Measured, rows: list[verdicts.Row], path: pathlib.Path
) -> None:
  """Share of digits found, depth by length, for every method and stage."""
  figure = script.new_figure(12, 7.6)
  panels = figure.subplots(len(STAGES), len(METHODS), squeeze=False)
  names = next(iter(measured.values()))
  places = [x.partition(', ')[2].split() for x in names]
  lengths = sorted({int(x[0]) for x in places if x[0].isdecimal()})
  shades = []
  for line, stage in zip(panels, STAGES, strict=True):
    for axes, method in zip(line, METHODS, strict=True):
      axes.set_title(f'{method}, {stage}', loc='left', fontsize=10)
      if f'{stage}, passkey' not in measured.get(f'{method}, seed 0', {}):
        continue
      grid = [
        [
          comparison.values(measured, method, f'{stage}, {x} {d:g}').mean()
          for x in lengths
        ]
        for d in haystack.DEPTHS
      ]
      shades.append(haystack.draw_grid(axes, np.array(grid), lengths))
  figure.supxlabel('tokens of the prompt (the short training had the first)')
  figure.supylabel('depth of the passkey')
  figure.colorbar(shades[-1], ax=panels, label='digits found')
  title = f'A context of 64 tokens, extended: {verdicts.counted(rows)}'
  script.save_figure(figure, title, path)


def run(stem: pathlib.Path, size: Size) -> None:
  """Trains what is missing, judges and draws."""
  methods = ['yarn'] if size == _SMOKE else METHODS
  small_runs.publish(
    functools.partial(train, size=size),
    small_runs.seed_by_seed(methods, size.short.seeds),
    all_claims,
    draw,
    stem,
  )


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(argv, run, Size(), _SMOKE)


if __name__ == '__main__':
  app.run(main)
