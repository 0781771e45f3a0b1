"""What changes along DeepSeek-V3's pre-training, by tokens.

Claim: rates, batch and loss weights of the report's section 4.2, as the step
gets them from configs/v3_671b.py: at the corners of every phase, and how many
tokens all steps train on.
Paper: arXiv 2412.19437, sections 4.1 and 4.2.
Command: python experiments/deepseek_v3/training_schedule.py
Cost: seconds of a CPU.

Reproduced: values at the corners agree to the last digit printed. Refuted:
anything beyond. We let the batch grow linearly in tokens: the report doesn't
give the shape of its growth.
"""

from collections.abc import Callable, Sequence
import pathlib
import sys

from absl import app
from matplotlib import ticker
import numpy as np

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import script
from seekax.cli.flags import load_config
from seekax.configuration.config import from_config_dict
from seekax.training.schedules import Schedule
import verdicts

_TRILLION = 10**12
_BLUE, _ORANGE = '#0072B2', '#B37400'


def paper() -> Schedule:
  """The schedule of configs/v3_671b.py."""
  config = pathlib.Path(__file__).parents[2] / 'configs' / 'v3_671b.py'
  return Schedule(from_config_dict(load_config(str(config))))


def all_claims() -> list[verdicts.Claim]:
  """The values at the corners of every phase."""
  schedule = paper()

  def at(value: Callable[[int], float], tokens: float) -> Callable[[], float]:
    return lambda: value(schedule.step_at(int(tokens * _TRILLION)))

  def before(value: Callable[[int], float], tokens: float):
    return lambda: value(schedule.step_at(int(tokens * _TRILLION)) - 1)

  def rate(step: int) -> float:
    return schedule.learning_rate(step) * 1e5

  length = schedule.config.data.sequence_length
  last_warm = schedule.config.optim.warmup_steps - 1
  return [
    verdicts.printed(
      'tokens of all steps',
      'T',
      '14.8',
      lambda: schedule.total_tokens / _TRILLION,
    ),
    verdicts.printed(
      'sequences of the first batch',
      '',
      '3072',
      lambda: schedule.batch_tokens(0) / length,
    ),
    verdicts.printed(
      'sequences after 469B tokens',
      '',
      '15360',
      lambda: at(schedule.batch_tokens, 0.469)() / length,
    ),
    verdicts.printed(
      'learning rate after 2,000 steps', '1e-5', '22', lambda: rate(last_warm)
    ),
    verdicts.printed(
      'learning rate before 10T', '1e-5', '22', before(rate, 10)
    ),
    verdicts.printed('learning rate at 14.3T', '1e-5', '2.2', at(rate, 14.3)),
    verdicts.printed(
      'learning rate before 14.633T', '1e-5', '2.2', before(rate, 14.633)
    ),
    verdicts.printed(
      'learning rate at the end', '1e-5', '0.73', before(rate, 14.8)
    ),
    verdicts.printed(
      'gamma before 14.3T',
      '',
      '0.001',
      before(schedule.bias_update_rate, 14.3),
    ),
    verdicts.printed(
      'lambda before 10T', '', '0.3', before(schedule.mtp_weight, 10)
    ),
    verdicts.printed(
      'lambda after 10T', '', '0.1', at(schedule.mtp_weight, 10)
    ),
  ]


def draw(rows: list[verdicts.Row], path: pathlib.Path) -> None:
  """Rates, batch and weights over the tokens trained on."""
  del rows
  schedule = paper()
  steps = np.unique(
    np.linspace(0, schedule.config.train.steps - 1, 2000).astype(int)
  ).tolist()
  tokens = [schedule.tokens_before(step) / _TRILLION for step in steps]
  figure = script.new_figure(9, 7)
  rate, batch, weights = figure.subplots(3, 1, sharex=True)
  rate.plot(
    tokens, [schedule.learning_rate(step) for step in steps], color=_BLUE
  )
  rate.set_yscale('log')
  rate.set_title('learning rate', loc='left')
  length = schedule.config.data.sequence_length
  batch.plot(
    tokens,
    [schedule.batch_tokens(step) / length for step in steps],
    color=_BLUE,
  )
  batch.set_title('sequences per step', loc='left')
  batch.set_ylim(0)
  batch.yaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
  weights.plot(
    tokens,
    [schedule.mtp_weight(step) for step in steps],
    color=_BLUE,
    label='MTP loss (lambda)',
  )
  weights.plot(
    tokens,
    [100 * schedule.bias_update_rate(step) for step in steps],
    color=_ORANGE,
    label='router bias (gamma), times 100',
  )
  weights.set_title('weights', loc='left')
  weights.set_ylim(0)
  weights.legend(frameon=False, loc='lower left')
  weights.set_xlabel('tokens trained on, trillions')
  for axes in (rate, batch, weights):
    axes.spines[['top', 'right']].set_visible(False)
  script.save_figure(
    figure, "DeepSeek-V3's pre-training, as its config tells the step", path
  )


def main(argv: Sequence[str]) -> None:
  verdicts.main(argv, all_claims, draw)


if __name__ == '__main__':
  app.run(main)
