"""How far a loss trained in FP8 lies from one trained in bfloat16.

Claim: training with every linear layer in block FP8 stays within 0.25 % of the
bfloat16 loss; E5M2 gradients, a scale per tensor and block-scaled gradients are
what its recipe avoids.
Paper: DeepSeek-V3 (arXiv 2412.19437), section 3.3 and appendix B.1, B.2: models
of 16B and 230B parameters, about 1e12 tokens, curves smoothed by an EMA of 0.9.
Command: python experiments/deepseek_v3/fp8_training_gap.py
Cost: 4 to 5 minutes of one CPU core.

Setting: V3's parts (MLA, a dense layer and one of 16 experts, MTP) at width 64,
tiles of 32, 300 steps of 512 tokens of four artificial languages; 3 seeds of
the initial weights and of the batches, each trained in all precisions; moments
of Adam in float32. The noise floor is bfloat16 from three other seeds of the
weights. Without promotion nothing is trained: its emulation is too slow.

The gap is the smoothed loss over bfloat16's of the same seed, minus 1, from
step 100 on. Reproduced: the mean gap over those steps and the largest one of
the mean over seeds are below 0.25 %. Refuted: above. For an ablation its mean
gap minus that of FP8 counts, paired by seed; reproduced (1) if it is above 2
standard errors, refuted (0) below minus 2, inconclusive (nan) between. An
effect of some hundredths of a percent can't be seen at this size. (Thresholds
were fixed before the first run.)
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools
import pathlib
import sys

from absl import app
import numpy as np

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import comparison
import script
from seekax.configuration import presets
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.fp8 import Fp8Config
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig
from seekax.data.pipeline import Batch
import small_corpus
import small_runs
import verdicts

_TILE = 32
_EMA = 0.9
_LIMIT = 0.25  # percent
_RECIPE = Fp8Config(tile_size=_TILE)

# An arm is a precision and a recipe. A rerun starts from other weights.
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


_SMALL = Size(
  seeds=2, steps=4, warm_up=2, width=32, rows=2, length=16, ablations=()
)


def config_of(arm: str, size: Size) -> Config:
  """The run of an arm; the caller chooses its seed."""
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
  for _ in range(size.steps):
    language = rng.integers(4, size=size.rows)
    tokens = list(rng.integers(vocab, size=(2, size.rows)))
    for _ in range(size.length - 1):
      choice = np.minimum(rng.geometric(0.5, size.rows) - 1, 3)
      two_back = tokens[-2] % 2
      tokens.append(tables[language, two_back, tokens[-1], choice])
    yield small_corpus.batch_of(np.stack(tokens, axis=1).astype(np.int32))


def train(arm: str, seed: int, size: Size) -> script.Numbers:
  """The smoothed loss at every tenth step."""
  config = config_of(arm, size)
  own_seed = seed + 1000 if arm == RERUN else seed
  _, metrics = small_runs.train(
    config,
    small_runs.initial_state(config, own_seed),
    batches(config, size, seed),
  )
  smooth, curve = 0.0, {}
  for number, found in enumerate(metrics, start=1):
    loss = float(found.loss)
    smooth = loss if number == 1 else _EMA * smooth + (1 - _EMA) * loss
    if number % 10 == 0 or size == _SMALL:
      curve[f'step {number}'] = smooth
  small_runs.say(arm, seed, loss=smooth)
  return curve


def gaps(curves: script.Measured, arm: str, size: Size) -> np.ndarray:
  """Percent over bfloat16, [seeds, recorded steps after the warm-up]."""
  steps, own = comparison.curve(curves, arm)
  _, high = comparison.curve(curves, HIGH)
  return (100 * (own / high - 1))[:, np.array(steps) >= size.warm_up]


def all_claims(curves: script.Measured, size: Size) -> list[verdicts.Claim]:
  """Two claims on FP8's gap, and one for every ablation."""
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
    worse = comparison.difference(
      gaps(curves, name, size).mean(axis=1), fp8.mean(axis=1)
    )
    claims.append(
      verdicts.holds(
        f'{name}: loss above that of FP8',
        worse.sign,
        f'{worse.mean:+.3f} % with a standard error of {worse.error:.3f} %',
      )
    )
  return claims


def draw(
  curves: script.Measured,
  rows: list[verdicts.Row],
  path: pathlib.Path,
  size: Size,
) -> None:
  """The gap of every arm along the run."""
  figure = script.new_figure(11, 4.6)
  axes = figure.subplots()
  steps = [x for x in comparison.curve(curves, HIGH)[0] if x >= size.warm_up]
  for arm in size.arms[1:]:
    found = gaps(curves, arm, size)
    color = '#909090' if arm == RERUN else None
    axes.plot(steps, found.mean(axis=0), label=arm, color=color)
  axes.axhspan(-_LIMIT, _LIMIT, color='#E4E4E4', zorder=0)
  axes.set_xlabel('step')
  axes.set_ylabel(f'loss over bfloat16, %, mean of {size.seeds} seeds')
  axes.legend(frameon=False)
  title = f'The gap to bfloat16: {verdicts.counted(rows)}'
  script.save_figure(figure, title, path)


def run(stem: pathlib.Path, size: Size) -> None:
  """Trains what is missing, judges and draws."""
  small_runs.publish(
    functools.partial(train, size=size),
    itertools.product(size.arms, range(size.seeds)),
    functools.partial(all_claims, size=size),
    functools.partial(draw, size=size),
    stem,
    'curves',
  )


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(argv, run, Size(), _SMALL)


if __name__ == '__main__':
  app.run(main)
