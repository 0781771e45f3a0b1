"""Muon for the matrices against AdamW for everything, on the demo's setting.

Claim: with updates as large as AdamW's, and its learning rate and decay taken
over unchanged, Muon needs about half the training FLOPs for the same loss; its
step costs little more.
Paper: Muon is Scalable for LLM Training (arXiv 2502.16982), sections 2 and 3.2.
Command: python experiments/optimizers/muon_against_adamw.py
Cost: 8 minutes of processor time, spread over two cores.

Setting: configs/demo.py, its 740 steps cut to 150, the warm-up in proportion
and the cosine to the new end; 2 paired seeds of initial weights and order of
documents; both optimizers at the demo's rate of 3e-3, which was chosen for
AdamW. Measured: bits per byte of the demo's 100,000 held-out bytes at five
equally spaced looks; and, one step of each in turn, the median seconds of a
step and the median ratio of neighbours, which other programs disturb alike.

Fixed before the first run: Muon's bits per byte are lower (1) if the mean
difference over seeds is below minus two standard errors, higher (0) if it is
above two, inconclusive (nan) between. "Half" is reproduced if the mean curve of
Muon reaches, within half the steps, what AdamW has at the end. This rule is
ours: the paper fits scaling laws over tuned runs, whose cosines end where they
are compared. A step costs at most 10 % more (our bound).
Changed during the run: we planned three seeds, and two fitted the time; we
decided that when we knew seed 0 and AdamW's seed 1. A step's time was to be the
fastest tenth of each training, but other programs slowed whole trainings
(0.256 s for AdamW, 0.577 s for Muon at seed 0), so steps are taken in turn.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import pathlib
import runpy
import sys
import time

from absl import app
import numpy as np

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import comparison
import script
from seekax.configuration.config import Config, from_config_dict
from seekax.inference import scoring
from seekax.model.transformer import Transformer
from seekax.runs import corpus as corpus_lib
import small_runs
import verdicts

_DEMO = pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'demo.py'
_LOOKS = 5
_DEARER = 0.1

ADAMW, MUON = 'adamw', 'muon'
TIMING, RATIO = 'timing', 'ratio'


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is trained."""

  seeds: int = 2
  steps: int = 150
  rounds: int = 30  # in each, one step of each optimizer is timed
  variant: str = ''


_SMOKE = Size(seeds=1, steps=5, rounds=2, variant='tiny')


def config_of(optimizer: str, size: Size) -> Config:
  """The demo, shorter, with an optimizer of choice."""
  wanted = runpy.run_path(str(_DEMO))['get_config'](size.variant)
  wanted.optim.name = optimizer
  wanted.optim.warmup_steps = max(
    wanted.optim.warmup_steps * size.steps // wanted.train.steps, 1
  )
  wanted.train.steps = size.steps
  if size == _SMOKE:  # Compiling takes most of its time.
    wanted.model.ffn, wanted.model.mtp_depth = 'dense', 0
    wanted.model.num_layers = wanted.model.num_dense_layers = 1
  return from_config_dict(wanted)


@functools.cache
def _corpus(seed: int, size: Size) -> corpus_lib.Corpus:
  config = config_of(ADAMW, size)
  data = dataclasses.replace(config.data, seed=seed)
  return corpus_lib.load(dataclasses.replace(config, data=data))


def bits_per_byte(config: Config, corpus: corpus_lib.Corpus, state) -> float:
  """Bits per byte of the documents that the run's own evaluations take."""
  chosen = corpus.evaluated(config.eval.max_bytes)
  totals = scoring.log_likelihoods(
    Transformer(config.model, compute=config.compute),
    state.weights,
    [corpus.heldout[i] for i in chosen],
    config.eval.batch_size,
  )
  num_bytes = sum(corpus.heldout_bytes[i] for i in chosen)
  return scoring.bits_per_byte(sum(totals), num_bytes)


def train(optimizer: str, seed: int, size: Size) -> script.Numbers:
  """Bits per byte along the run."""
  if optimizer == TIMING:
    return timing(size)
  config, corpus = config_of(optimizer, size), _corpus(seed, size)
  start, bits = corpus.batches.get_state(), {}

  def look(step, state):
    if step * _LOOKS % size.steps < _LOOKS:
      bits[f'step {step}'] = bits_per_byte(config, corpus, state)

  small_runs.train(
    config,
    small_runs.initial_state(config, seed),
    itertools.islice(corpus.batches, size.steps),
    look,
  )
  corpus.batches.set_state(start)
  small_runs.say(optimizer, seed, **bits)
  return bits | {'bits per byte': bits[f'step {size.steps}']}


def timing(size: Size) -> script.Numbers:
  """The seconds of a step of each optimizer, taken in turn."""
  batch = next(_corpus(0, size).batches)
  configs = {x: config_of(x, size) for x in (ADAMW, MUON)}
  states = {x: small_runs.initial_state(y, 0) for x, y in configs.items()}
  seconds = {x: [] for x in configs}
  for _ in range(1 + size.rounds):
    for name, config in configs.items():
      before = time.perf_counter()
      states[name], _ = small_runs.train(config, states[name], iter([batch]))
      seconds[name].append(time.perf_counter() - before)
  took = {x: np.array(y[1:]) for x, y in seconds.items()}  # The first compiles.
  return {
    **{x: float(np.median(y)) for x, y in took.items()},
    RATIO: float(np.median(took[MUON] / took[ADAMW])),
  }


def all_claims(measured: script.Measured) -> list[verdicts.Claim]:
  """Muon's loss at equal steps, its steps for an equal loss, and their time."""
  target = comparison.values(measured, ADAMW, 'bits per byte').mean()
  steps, bits = comparison.curve(measured, MUON)
  reached = np.array(steps)[bits.mean(axis=0) <= target]
  share = float(reached[0] / steps[-1]) if len(reached) else np.inf
  took = measured[f'{TIMING}, seed 0']
  means = [
    comparison.values(measured, x, 'bits per byte').mean()
    for x in (ADAMW, MUON)
  ]
  difference = comparison.paired(measured, ADAMW, MUON, 'bits per byte')
  return [
    verdicts.holds(
      'bits per byte: adamw above muon, at equal steps',
      difference.sign,
      f'{means[0]:.4f} and {means[1]:.4f}; {difference}',
    ),
    verdicts.holds(
      "adamw's bits per byte reached in half the steps",
      share <= 0.5,
      f'first look at or below it: {share:.1f} of the steps',
    ),
    verdicts.holds(
      'a step is dearer by at most 10 %',
      took[RATIO] <= 1 + _DEARER,
      f'{100 * (took[RATIO] - 1):+.1f} %: {1000 * took[MUON]:.0f} ms and '
      f'{1000 * took[ADAMW]:.0f} ms',
    ),
  ]


def draw(
  measured: script.Measured, rows: list[verdicts.Row], path: pathlib.Path
) -> None:
  """Bits per byte over steps and over seconds."""
  figure = script.new_figure(10, 4.2)
  panels = figure.subplots(1, 2, sharey=True)
  for color, optimizer in enumerate((ADAMW, MUON)):
    steps, bits = comparison.curve(measured, optimizer)
    seconds = measured[f'{TIMING}, seed 0'][optimizer]
    across_both = steps, np.array(steps) * seconds
    for axes, across in zip(panels, across_both, strict=True):
      axes.plot(across, bits.T, color=f'C{color}', linewidth=1)
      axes.plot([], [], color=f'C{color}', label=optimizer)
  panels[0].set_ylabel('held-out bits per byte')
  panels[0].set_xlabel('step (a line is a seed)')
  panels[1].set_xlabel('seconds, at the median time of a step')
  panels[0].legend(frameon=False)
  title = f'Muon against AdamW: {verdicts.counted(rows)}'
  script.save_figure(figure, title, path)


def run(stem: pathlib.Path, size: Size) -> None:
  """Trains what is missing, judges and draws."""
  small_runs.publish(
    functools.partial(train, size=size),
    [*small_runs.seed_by_seed((ADAMW, MUON), size.seeds), (TIMING, 0)],
    all_claims,
    draw,
    stem,
  )


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(argv, run, Size(), _SMOKE)


if __name__ == '__main__':
  app.run(main)
