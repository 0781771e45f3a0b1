"""How far a loss trained in FP8 lies from one trained in bfloat16.

Claim: training with every linear layer in block FP8 stays within 0.25 % of the
bfloat16 loss; E5M2 gradients, a scale per tensor and block-scaled gradients are
what its recipe avoids.
Paper: DeepSeek-V3 (arXiv 2412.19437), section 3.3 and appendix B.1, B.2: models
of 16B and 230B parameters, about 1e12 tokens, curves smoothed by an EMA of 0.9.
Command: python experiments/deepseek_v3/fp8_training_gap.py
Cost: 4 to 5 minutes of one CPU core.

Here: V3's parts (MLA, a dense layer and one of 16 experts, MTP) at width 64,
tiles of 32, 300 steps of 512 tokens of four artificial languages; 3 seeds of
the initial weights and of the batches, each trained in all precisions; moments
of Adam in float32. The noise floor is bfloat16 from three other seeds of the
weights. Without promotion nothing is trained: its emulation is too slow.

Gap: the smoothed loss over bfloat16's of the same seed, minus 1, from step 100
on. Reproduced: the mean gap over those steps and the largest one of the mean
over seeds are below 0.25 %. Refuted: above. Of an ablation: its mean gap minus
that of FP8, paired by seed; reproduced (1) if it is above 2 standard errors,
refuted (0) below minus 2, inconclusive (nan) between. An effect of some
hundredths of a percent can't be seen at this size. (Thresholds were fixed
before the first run.)
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import pathlib
import sys
import tempfile

from absl import app, flags
import jax
from matplotlib import figure as figure_lib
import numpy as np

# Scripts are run by path: what they share lies one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import measurements
from seekax.configuration import presets
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.fp8 import Fp8Config
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig
from seekax.data.pipeline import Batch
from seekax.model.parameters import init_weights
from seekax.training import step as step_lib
from seekax.training.schedules import Schedule
from seekax.training.state import start_from
import verdicts

_SMOKE = flags.DEFINE_bool('smoke', False, 'small, and keep nothing')
_OUTDIR = flags.DEFINE_string(
  'outdir',
  str(pathlib.Path(__file__).resolve().parent / 'results'),
  'folder of the CSV and the PNG',
)

_STEM = 'fp8_training_gap'
_TILE = 32
_EMA = 0.9
_LIMIT = 0.25  # percent
_RECIPE = Fp8Config(tile_size=_TILE)

# Name of an arm: precision and recipe. A rerun starts from other weights.
HIGH, RERUN, FP8 = 'bfloat16', 'bfloat16, other seed', 'fp8'
ABLATIONS = {
  'E5M2 gradients': dataclasses.replace(_RECIPE, gradient_format='e5m2'),
  'scale per tensor': dataclasses.replace(_RECIPE, scaling='tensor'),
  'blocks of gradients': dataclasses.replace(
    _RECIPE, gradient_scaling='blocks'
  ),
}


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is trained."""

  seeds: int = 3
  steps: int = 300
  warm_up: int = 100
  width: int = 64
  rows: int = 8
  length: int = 64
  ablations: tuple[str, ...] = tuple(ABLATIONS)

  @property
  def arms(self) -> tuple[str, ...]:
    return HIGH, RERUN, FP8, *self.ablations


_FULL = Size()
_SMALL = Size(
  seeds=2, steps=4, warm_up=2, width=32, rows=2, length=16, ablations=()
)


def config_of(arm: str, size: Size) -> Config:
  """The run of an arm; its seed is the caller's."""
  model = dataclasses.replace(
    presets.tiny(),
    vocab_size=256,
    embed_dim=size.width,
    mlp_dim=2 * size.width,
    expert_dim=size.width // 2,
    query_latent_dim=size.width // 2,
    kv_latent_dim=size.width // 2,
    num_layers=2,
  )
  if size == _SMALL:  # Compiling takes all of its time.
    model = dataclasses.replace(model, ffn='dense', num_layers=1, mtp_depth=0)
  return Config(
    model=model,
    data=DataConfig(
      sequence_length=size.length, batch_size=size.rows, num_shards=1
    ),
    optim=OptimConfig(
      learning_rate=2e-3,
      final_learning_rate=2e-4,
      warmup_steps=size.steps // 10,
      constant_tokens=(size.steps // 10 + size.steps // 2)
      * size.rows
      * size.length,
    ),
    train=TrainConfig(
      steps=size.steps,
      precision='bfloat16' if arm in (HIGH, RERUN) else 'fp8',
    ),
    fp8=ABLATIONS.get(arm, _RECIPE),
  )


def batches(config: Config, size: Size, seed: int) -> Iterator[Batch]:
  """Rows of four languages: the last two tokens leave four for the next."""
  vocab = config.model.vocab_size
  tables = np.random.default_rng(0).integers(vocab, size=(4, 64, vocab, 4))
  rng = np.random.default_rng(seed)
  ones = np.ones((size.rows, size.length), np.int32)
  positions = np.tile(np.arange(size.length, dtype=np.int32), (size.rows, 1))
  for _ in range(size.steps):
    language = rng.integers(4, size=size.rows)
    tokens = list(rng.integers(vocab, size=(2, size.rows)))
    for _ in range(size.length - 1):
      choice = np.minimum(rng.geometric(0.5, size.rows) - 1, 3)
      two_back = tokens[-2] % 2
      tokens.append(tables[language, two_back, tokens[-1], choice])
    tokens = np.stack(tokens, axis=1).astype(np.int32)
    yield Batch(tokens[:, :-1], tokens[:, 1:], positions, ones, ones)


# Compiled once for all seeds.
_initial_weights = jax.jit(init_weights, static_argnums=0)


def train(arm: str, seed: int, size: Size) -> measurements.Numbers:
  """Smoothed loss at every tenth step and, unrounded, after the warm-up."""
  config = config_of(arm, size)
  own_seed = seed + 1000 if arm == RERUN else seed
  weights = _initial_weights(config.model, own_seed)
  state = start_from(config, weights)
  losses, schedule = [], Schedule(config)
  for number, batch in enumerate(batches(config, size, seed)):
    rates = schedule.rates(number)
    state, metrics = step_lib.train_step(config, state, [batch], rates)
    losses.append(metrics.loss)
  smooth, curve = None, {}
  for number, loss in enumerate(jax.device_get(losses), start=1):
    loss = float(loss)
    smooth = loss if smooth is None else _EMA * smooth + (1 - _EMA) * loss
    if number % 10 == 0 or size == _SMALL:
      curve[f'step {number}'] = smooth
  print(f'{arm}, seed {seed}: {smooth:.4f}', file=sys.stderr, flush=True)
  return curve


def gaps(
  curves: dict[str, measurements.Numbers], arm: str, size: Size
) -> np.ndarray:
  """Percent over bfloat16, [seeds, recorded steps after the warm-up]."""
  rows = []
  for seed in range(size.seeds):
    own = curves[f'{arm}, seed {seed}']
    high = curves[f'{HIGH}, seed {seed}']
    rows.append(
      [
        100 * (own[name] / high[name] - 1)
        for name in own
        if int(name.partition(' ')[2]) >= size.warm_up
      ]
    )
  return np.array(rows)


def worse(first: np.ndarray, second: np.ndarray) -> tuple[float, str]:
  """Whether the first's mean gap is above the second's, paired by seed.

  Returns:
    (1 yes, 0 no, NaN within two standard errors; the difference in words).
  """
  difference = first.mean(axis=1) - second.mean(axis=1)
  mean = difference.mean()
  error = difference.std(ddof=1) / np.sqrt(len(difference))
  words = f'{mean:+.3f} % with a standard error of {error:.3f} %'
  if abs(mean) <= 2 * error:
    return float('nan'), words
  return float(mean > 0), words


def all_claims(
  curves: dict[str, measurements.Numbers], size: Size
) -> list[verdicts.Claim]:
  fp8, floor = gaps(curves, FP8, size), gaps(curves, RERUN, size)
  floor_words = (
    f'other seeds: mean {floor.mean():+.3f} %, '
    f'largest {np.abs(floor.mean(axis=0)).max():.3f} %'
  )
  claims = [
    verdicts.Claim(
      'FP8 over bfloat16: mean gap',
      '%',
      '0',
      lambda: fp8.mean(),
      _LIMIT,
      floor_words,
    ),
    verdicts.Claim(
      'FP8 over bfloat16: largest gap of the mean over seeds',
      '%',
      '0',
      lambda: np.abs(fp8.mean(axis=0)).max(),
      _LIMIT,
      f'of a single seed {np.abs(fp8).max():.3f} %',
    ),
  ]
  for name in size.ablations:
    is_worse, words = worse(gaps(curves, name, size), fp8)
    claims.append(
      verdicts.Claim(
        f'{name}: loss above that of FP8',
        '',
        '1',
        lambda x=is_worse: x,
        0.0,
        words,
      )
    )
  return claims


def draw(
  curves: dict[str, measurements.Numbers],
  size: Size,
  rows: list[verdicts.Row],
  path: pathlib.Path,
) -> None:
  """The PNG of both CSVs' rows."""
  figure = figure_lib.Figure(figsize=(11, 4.6), layout='constrained')
  axes = figure.subplots()
  steps = [int(name.partition(' ')[2]) for name in next(iter(curves.values()))]
  steps = [x for x in steps if x >= size.warm_up]
  for arm in size.arms[1:]:
    found = gaps(curves, arm, size)
    style = dict(color='#909090') if arm == RERUN else {}
    axes.plot(steps, found.mean(axis=0), label=arm, **style)
  axes.axhspan(-_LIMIT, _LIMIT, color='#E4E4E4', zorder=0)
  axes.set_xlabel('step')
  axes.set_ylabel(f'loss over bfloat16, %, mean of {size.seeds} seeds')
  axes.legend(frameon=False)
  axes.spines[['top', 'right']].set_visible(False)
  counts = [
    f'{sum(row.verdict == verdict for row in rows)} {verdict}'
    for verdict in (
      verdicts.REPRODUCED,
      verdicts.REFUTED,
      verdicts.INCONCLUSIVE,
    )
  ]
  figure.suptitle(
    'The gap to bfloat16: ' + ', '.join(counts),
    x=0.01,
    ha='left',
    fontsize=14,
    weight='bold',
  )
  figure.savefig(path, dpi=120)


def run(outdir: pathlib.Path, size: Size) -> None:
  """Trains what is missing, judges and draws."""
  curves = measurements.measure_missing(
    {
      f'{arm}, seed {seed}': functools.partial(train, arm, seed, size)
      for arm in size.arms
      for seed in range(size.seeds)
    },
    outdir / f'{_STEM}_curves.csv',
  )
  verdicts.publish(
    all_claims(curves, size),
    outdir,
    _STEM,
    functools.partial(draw, curves, size),
  )


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if _SMOKE.value:
    with tempfile.TemporaryDirectory() as folder:
      run(pathlib.Path(folder), _SMALL)
    return
  run(pathlib.Path(_OUTDIR.value), _FULL)


if __name__ == '__main__':
  app.run(main)
