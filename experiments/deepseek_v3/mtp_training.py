"""What a multi-token prediction module does to the model it is trained with.

Claim: the loss stays (Pile, bits per byte: 0.729 with and without, 0.658 to
0.657) and what the model can do improves (GSM8K 25.4 to 31.4, HumanEval 20.7 to
26.8). Gloeckle et al.: below 30M parameters induction improves; code and
generic text don't below about 1B.
Paper: DeepSeek-V3 (arXiv 2412.19437), sections 2.2 and 4.5.1, table 4; Better
and faster large language models via multi-token prediction (arXiv 2404.19737),
section 4 and appendix on induction.
Command: python experiments/deepseek_v3/mtp_training.py
Cost: 9 minutes on two cores beside other work, 10 of processor time.

Setting: a trunk of 2 dense layers of width 64 and one module or none, its loss
weighted 0.3 or 0.1; 2,500 steps of 1,024 tokens, 4 paired seeds: the same trunk
at the start and the same batches. Half of the rows of 32 tokens are four names
of two letters that recur (others in every row), half are sums of two digits
modulo 10. Measured without the module on 16,384 held-out tokens: the main loss;
how often the likeliest token is the second letter of a name seen before
(induction; guessing one of the four gives 25 %); how often it is a sum's result
(guessing gives 10 %). Both are also averaged over eight equally spaced looks
along the run, because a module may only speed up what every run learns in the
end. The tasks are small because runs of this length don't learn names of two of
128 tokens, nor sums modulo 97, at all.
Runs without a module chose the tasks and the rate; one pair with a module,
1,000 steps of names of two of 128 tokens, ended at 4.609 nats without it and at
4.636 with it.

Fixed before the first run: the loss is unchanged (1) if the mean difference
over seeds lies within two standard errors, changed (0) if it is worse by more
than that and by 0.5 %, else inconclusive (nan). An accuracy is reproduced if it
is higher by more than two standard errors, refuted if lower by as much,
inconclusive between.
"""

from collections.abc import Sequence
import functools
import math
import pathlib
import sys
import time

from absl import app
import numpy as np

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import comparison
import script
import small_corpus
import small_runs
import verdicts

_LOOKS = 8
_WORSE = 0.005

NONE, STRONG, WEAK = 'none', 'lambda 0.3', 'lambda 0.1'
# Weight of the module's loss; None: no module.
ARMS = {NONE: None, STRONG: 0.3, WEAK: 0.1}
INDUCTION, SUMS = small_corpus.LETTERS, small_corpus.DIGITS
_DOMAINS = (INDUCTION, SUMS)
_FULL = small_runs.Size(seeds=4, steps=2500, rows=32, length=32)


def train(arm: str, seed: int, size: small_runs.Size) -> script.Numbers:
  """Held-out loss and accuracies, at the end and along the run."""
  weight = ARMS[arm]
  model = small_runs.model_of(
    size,
    ffn='dense',
    num_layers=1 if size == small_runs.SMOKE else 2,
    mtp_depth=int(weight is not None),
    init_std=0.1,
  )
  config = small_runs.config_of(size, model, 1e-2, mtp_weight=weight or 0.0)
  rows = small_runs.heldout_rows(size, _DOMAINS)
  numbers = {}

  def look(step, state):
    if step * _LOOKS % size.steps < _LOOKS:
      found = small_runs.accuracy(config, state, rows)
      numbers.update({f'{name} {step}': x for name, x in found.items()})

  began = time.process_time()
  state, _ = small_runs.train(
    config,
    small_runs.initial_state(config, seed),
    small_runs.training_batches(size, seed, _DOMAINS),
    look,
  )
  for domain in _DOMAINS:
    # A few rows, as in the smoke form, may lack the domain.
    looks = [x for name, x in numbers.items() if name.startswith(domain)]
    numbers[domain] = looks[-1] if looks else math.nan
    numbers[f'{domain}, mean'] = float(np.mean(looks or math.nan))
  numbers['loss'] = small_runs.evaluate(config, state, rows)[0]
  shown = {x: numbers[x] for x in ('loss', INDUCTION, SUMS)}
  small_runs.say(arm, seed, **shown, seconds=time.process_time() - began)
  return numbers


def unchanged(measured: script.Measured, arm: str) -> verdicts.Claim:
  """The claim that the main loss is that of the trunk alone."""
  change = comparison.paired(measured, arm, NONE, 'loss')
  losses = comparison.values(measured, NONE, 'loss')
  share = change.mean / losses.mean() if len(losses) else math.nan
  if abs(change.mean) <= 2 * change.error:
    ours = 1.0
  else:
    ours = 0.0 if share > _WORSE else math.nan
  words = f'{change} nats, {100 * share:+.2f} %'
  return verdicts.holds(
    f'{arm}: main loss unchanged',
    ours,
    'not measured' if math.isnan(share) else words,
  )


def all_claims(measured: script.Measured) -> list[verdicts.Claim]:
  """For every weight: the loss is unchanged, the accuracies are higher."""
  words = {
    INDUCTION: 'induction at the end',
    f'{INDUCTION}, mean': 'induction along the run',
    SUMS: 'sums at the end',
    f'{SUMS}, mean': 'sums along the run',
  }
  claims = []
  for arm in (STRONG, WEAK):
    claims.append(unchanged(measured, arm))
    claims += [
      comparison.order(measured, f'{arm}: {text} above none', arm, NONE, name)
      for name, text in words.items()
    ]
  return claims


def draw(
  measured: script.Measured, rows: list[verdicts.Row], path: pathlib.Path
) -> None:
  """Accuracies along the run, and the loss at its end."""
  figure = script.new_figure(12, 4.2)
  panels = figure.subplots(1, 3)
  titles = {INDUCTION: 'names recalled', SUMS: 'digits of sums'}
  for axes, (domain, title) in zip(panels, titles.items(), strict=False):
    for number, arm in enumerate(ARMS):
      found = measured.get(f'{arm}, seed 0', {})
      steps = [
        int(words[1])
        for words in map(str.split, found)
        if words[0] == domain and len(words) == 2
      ]
      for seed, _ in enumerate(comparison.values(measured, arm, 'loss')):
        of_seed = measured[f'{arm}, seed {seed}']
        axes.plot(
          steps,
          [100 * of_seed[f'{domain} {step}'] for step in steps],
          color=f'C{number}',
          linewidth=1,
          label=arm if seed == 0 else None,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel('step (a line is a seed)')
    axes.set_ylabel(f'{title}, %')
  for number, arm in enumerate(ARMS):
    losses = comparison.values(measured, arm, 'loss')
    panels[2].scatter(losses, [number] * len(losses), color=f'C{number}')
  panels[2].set_yticks(range(len(ARMS)), ARMS)
  panels[2].set_ylim(-0.5, len(ARMS) - 0.5)
  panels[2].set_xlabel('held-out main loss, nats (a dot is a seed)')
  panels[0].legend(frameon=False)
  title = f'Trained with and without MTP: {verdicts.counted(rows)}'
  script.save_figure(figure, title, path)


def run(stem: pathlib.Path, size: small_runs.Size) -> None:
  """Trains what is missing, judges and draws."""
  arms = [STRONG] if size == small_runs.SMOKE else list(ARMS)
  small_runs.publish(
    functools.partial(train, size=size),
    small_runs.seed_by_seed(arms, size.seeds),
    all_claims,
    draw,
    stem,
  )


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(argv, run, _FULL, small_runs.SMOKE)


if __name__ == '__main__':
  app.run(main)
