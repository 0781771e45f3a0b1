"""What DeepSeek-V3 holds and what it cost: every published sum, done again.

Claim: 671B parameters of which 37B are activated per token, trained in 2,788K
H800 hours for 5.576M dollars: a tenth of the arithmetic per token of Llama 3.1
405B, and an eleventh of its hours.
Paper: DeepSeek-V3 (arXiv 2412.19437), table 1 and the notes with its weights;
DeepSeek-V2 (2405.04434), figure 1; "Insights into DeepSeek-V3" (2505.09343),
tables 2 and 4; the Llama 3.1 model card.
Command: python experiments/deepseek_v3/cost_and_parameters.py
Cost: 3 seconds of a CPU; nothing is trained, no array is made.

Reproduced: hours and dollars agree within half a unit of the last digit
printed; counts of parameters within that or 0.5 %, whichever is more; GFLOP per
token within 1 %; identities between the published throughputs within 0.5 %.
Refuted: anything beyond. If we found a way of counting by looking for the
paper's number (marked post hoc), agreement is inconclusive.
Known beforehand: the dense rows 394 and 2,448 GFLOP per token follow another
convention than the MoE rows; we don't know which.
Caveat: hours of H800 and H100 are compared as they are.
"""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
import sys

from absl import app
from matplotlib import axes as axes_lib

from seekax.configuration.model import ModelConfig

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import deviation_plot
import insights_table_4
from seekax.configuration import presets
from seekax.planning import flops, hardware, parameters, price
import verdicts

_SEQUENCE_LENGTH = 4096
_SECONDS_PER_DAY = 86400
_TOKENS_PER_STEP = 15360 * _SEQUENCE_LENGTH  # V3 after its batch ramp

# Shares of the paper's number. We chose them when hand arithmetic had shown
# most of the numbers, so they guard against mistakes and not against choice.
_COUNT_TOLERANCE = 0.005
_FLOPS_TOLERANCE = 0.01
_IDENTITY_TOLERANCE = 0.005

_GFLOP_ROWS = {
  'V2': 'V2: GFLOP per token',
  'V3': 'V3: GFLOP per token',
  'Qwen2.5\n72B': 'Qwen2.5-72B: GFLOP per token',
  'Llama 3.1\n405B': 'Llama 3.1 405B: GFLOP per token',
}


def qwen2_5_72b() -> ModelConfig:
  """Qwen2.5-72B by its public shapes, without its attention biases."""
  return dataclasses.replace(
    presets.llama3_70b(), vocab_size=152064, mlp_dim=29568
  )


def _count(
  name: str,
  paper: str,
  measure: Callable[[], float],
  note: str = '',
  post_hoc: bool = False,
) -> verdicts.Claim:
  """A number of parameters, in units of 1e9."""
  tolerance = max(
    verdicts.half_digit(paper), verdicts.share(paper, _COUNT_TOLERANCE)
  )
  return verdicts.Claim(name, 'B', paper, measure, tolerance, note, post_hoc)


def _within(
  name: str,
  unit: str,
  paper: str,
  measure: Callable[[], float],
  fraction: float,
  note: str = '',
  post_hoc: bool = False,
) -> verdicts.Claim:
  """A claim that must agree within a fraction of the paper's number."""
  tolerance = verdicts.share(paper, fraction)
  return verdicts.Claim(name, unit, paper, measure, tolerance, note, post_hoc)


def parameter_claims() -> list[verdicts.Claim]:
  """Counts in units of 1e9."""
  v3 = parameters.count_parameters(presets.v3_671b())
  v2 = parameters.count_parameters(presets.v2())
  lite = parameters.count_parameters(presets.v2_lite())
  mtp_both_tables = v3.mtp_activated + v3.embedding
  projection = 2 * v3.model.embed_dim**2
  return [
    _count('V3: parameters', '671', lambda: v3.total / 1e9),
    _count(
      'V3: activated',
      '37',
      lambda: v3.activated_without_embedding / 1e9,
      'without the input embedding',
    ),
    _count(
      'V3: activated, weights note',
      '36.7',
      lambda: v3.activated / 1e9,
      'with both tables, as the note says',
    ),
    _count(
      'V3: values in the download',
      '685',
      lambda: (v3.total + v3.mtp + v3.embedding + v3.head) / 1e9,
      'both tables twice; within 0.5 %, beyond half a digit',
    ),
    _count('V3: MTP module', '11.5', lambda: v3.mtp / 1e9),
    _count(
      'V3: MTP without projection',
      '11.5',
      lambda: (v3.mtp - projection) / 1e9,
      'post hoc',
      post_hoc=True,
    ),
    _count(
      'V3: MTP activated',
      '2.4',
      lambda: mtp_both_tables / 1e9,
      'with both tables, as the weights note',
    ),
    _count(
      'V3: MTP activated without projection',
      '2.4',
      lambda: (mtp_both_tables - projection) / 1e9,
      'post hoc',
      post_hoc=True,
    ),
    _count('V2: parameters', '236', lambda: v2.total / 1e9),
    _count(
      'V2: activated',
      '21',
      lambda: v2.activated_without_embedding / 1e9,
      'without the input embedding',
    ),
    _count('V2-Lite: parameters', '15.7', lambda: lite.total / 1e9),
    _count(
      'V2-Lite: activated',
      '2.4',
      lambda: lite.activated_without_embedding / 1e9,
      'without the input embedding; rounds to 2.5',
    ),
  ]


def cost_claims() -> list[verdicts.Claim]:
  """Table 1 of DeepSeek-V3, and the hours of other models."""
  hours = price.V3_HOURS
  cost = price.training_dollars(hours, price.V3_PRICE)
  hours_per_trillion = 180e3
  return [
    verdicts.printed('V3: hours', 'K', '2788', lambda: hours.total / 1e3),
    verdicts.printed(
      'V3: pre-training hours',
      'K',
      '2664',
      lambda: hours_per_trillion * 14.8 / 1e3,
      '180K per 1e12 tokens, 14.8e12 tokens',
    ),
    verdicts.printed(
      'V3: days per 1e12 tokens',
      'days',
      '3.7',
      lambda: price.wall_hours(hours_per_trillion, price.V3_DEVICES) / 24,
      'on 2,048 H800',
    ),
    verdicts.printed(
      'V3: pre-training cost', 'M$', '5.328', lambda: cost.pretraining / 1e6
    ),
    verdicts.printed(
      'V3: context extension cost',
      'M$',
      '0.238',
      lambda: cost.context_extension / 1e6,
    ),
    verdicts.printed(
      'V3: post-training cost', 'M$', '0.01', lambda: cost.posttraining / 1e6
    ),
    verdicts.printed('V3: cost', 'M$', '5.576', lambda: cost.total / 1e6),
    verdicts.printed(
      'Llama 3.1 405B: hours over V3',
      'x',
      '11',
      lambda: 30.84e6 / hours.total,
      'H100 hours over H800 hours',
    ),
    verdicts.printed(
      'Llama 3.1: hours, three sizes', 'M', '39.3', lambda: 1.46 + 7.0 + 30.84
    ),
    verdicts.printed(
      'V2: hours saved against 67B',
      '%',
      '42.5',
      lambda: 100 * (1 - 172.8 / 300.6),
      'hours per 1e12 tokens, both as published',
    ),
  ]


def flops_claims() -> list[verdicts.Claim]:
  """GFLOP per token in table 2 of arXiv 2505.09343."""
  models = {
    'V2': ('155', presets.v2()),
    'V3': ('250', presets.v3_671b()),
    'Qwen2.5-72B': ('394', qwen2_5_72b()),
    'Llama 3.1 405B': ('2448', presets.llama3_405b()),
  }
  claims = [
    _within(
      f'{name}: GFLOP per token',
      '',
      paper,
      lambda model=model: _gflop(model),
      _FLOPS_TOLERANCE,
      '' if model.uses_experts else 'open: another convention than MoE rows',
    )
    for name, (paper, model) in models.items()
  ]
  for name in ('Qwen2.5-72B', 'Llama 3.1 405B'):
    paper, model = models[name]
    claims.append(
      _within(
        f'{name}: with half the attention',
        '',
        paper,
        lambda model=model: _gflop(model) - _attention_gflop(model) / 2,
        _FLOPS_TOLERANCE,
        'post hoc',
        post_hoc=True,
      )
    )
  return claims


def _gflop(model: ModelConfig, causal: bool = True) -> float:
  per_token = flops.training_flops_per_token(
    model, _SEQUENCE_LENGTH, causal=causal
  )
  return per_token / 1e9


def _attention_gflop(model: ModelConfig) -> float:
  """GFLOP of the lower triangle, as many as the upper one would take."""
  return _gflop(model, causal=False) - _gflop(model)


def throughput_claims(table: insights_table_4.Column) -> list[verdicts.Claim]:
  """Identities within one column of table 4 of arXiv 2505.09343."""
  model = presets.v3_671b()
  peak = hardware.DEVICES['h800'].peak_flops

  def tflops(causal: bool) -> float:
    return _gflop(model, causal) * 1e9 * table.rate / price.V3_DEVICES / 1e12

  def within(name, unit, paper, measure, note=''):
    return _within(
      f'{table.name}: {name}', unit, paper, measure, _IDENTITY_TOLERANCE, note
    )

  return [
    within(
      'tokens per day',
      'B',
      table.tokens_per_day,
      lambda: (
        _TOKENS_PER_STEP
        / float(table.seconds_per_step)
        * _SECONDS_PER_DAY
        / 1e9
      ),
      '15,360 x 4,096 tokens over the seconds per step',
    ),
    within(
      'seconds per step, phases',
      's',
      table.seconds_per_step,
      lambda: table.phases.total,
    ),
    within(
      'TFLOP/s, causal', '', table.tflops_causal, lambda: tflops(causal=True)
    ),
    within('TFLOP/s, full', '', table.tflops, lambda: tflops(causal=False)),
    within(
      'MFU, causal',
      '%',
      table.mfu_causal,
      lambda: 100 * tflops(causal=True) * 1e12 / peak,
    ),
    within(
      'MFU, full',
      '%',
      table.mfu,
      lambda: 100 * tflops(causal=False) * 1e12 / peak,
    ),
    within(
      'pre-training hours',
      'K',
      '2664',
      lambda: (
        price.device_hours(
          price.V3_PRETRAINING_TOKENS, table.rate / price.V3_DEVICES
        )
        / 1e3
      ),
      '14.8e12 tokens at this rate',
    ),
  ]


def all_claims() -> list[verdicts.Claim]:
  """All claims, in the order of the table."""
  claims = parameter_claims() + cost_claims() + flops_claims()
  for table in (insights_table_4.MPFT, insights_table_4.MRFT):
    claims += throughput_claims(table)
  return claims


def draw(rows: list[verdicts.Row], path: pathlib.Path) -> None:
  """GFLOP per token of four models, and all deviations."""
  deviation_plot.save(
    rows,
    path,
    lambda axes: _draw_gflop(axes, {row.name: row for row in rows}),
    "DeepSeek-V3's cost re-derives from its shapes; the dense rows of its "
    'FLOP table do not',
    height=9.2,
    legend='lower right',
  )


def _draw_gflop(axes: axes_lib.Axes, by_name: dict[str, verdicts.Row]) -> None:
  for position, name in enumerate(_GFLOP_ROWS.values()):
    row = by_name[name]
    axes.bar(
      position,
      row.ours,
      width=0.6,
      color=deviation_plot.COLORS[row.verdict],
    )
    axes.text(
      position,
      row.ours + 30,
      f'{row.ours:.0f}',
      ha='center',
      va='bottom',
      fontsize=11,
    )
    axes.text(
      position,
      row.ours + 95,
      f'paper {row.paper}',
      ha='center',
      va='bottom',
      fontsize=9,
      color='#606060',
    )
  axes.set_xticks(range(len(_GFLOP_ROWS)), list(_GFLOP_ROWS))
  axes.set_ylim(0, 2750)
  axes.set_ylabel('GFLOP per trained token, 4,096 positions')
  axes.set_title('A tenth of the arithmetic of the dense 405B', loc='left')
  axes.tick_params(axis='x', length=0)


def main(argv: Sequence[str]) -> None:
  verdicts.main(argv, all_claims, draw)


if __name__ == '__main__':
  app.run(main)
