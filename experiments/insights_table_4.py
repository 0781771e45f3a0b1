"""DeepSeek-V3's training step on 2,048 H800, as it was published.

Source: table 4 of "Insights into DeepSeek-V3" (arXiv 2505.09343). Its columns
are two networks: V3 was trained on MPFT.
"""

import dataclasses

from seekax.planning import schedules

_SECONDS_PER_DAY = 86400
_STAGES, _MICRO_BATCHES = 16, 120


@dataclasses.dataclass(frozen=True)
class Phases:
  """Seconds, each summed over a step.

  Attributes:
    forward: forward chunks that run alone (1F).
    bubble: waiting.
    backward: backward chunks that run alone (1B).
    weight: chunks of weight gradients that run alone (1W).
    pair: overlapped forward and backward chunks (1F1B).
    optimizer: the optimizer.
  """

  forward: float
  bubble: float
  backward: float
  weight: float
  pair: float
  optimizer: float

  @property
  def total(self) -> float:
    return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Column:
  """One column of the table; strings are figures as printed."""

  name: str
  tokens_per_day: str  # 1e9
  seconds_per_step: str
  phases: Phases
  mfu: str
  mfu_causal: str
  tflops: str = '432'
  tflops_causal: str = '385'

  @property
  def rate(self) -> float:
    """Tokens per second on all devices."""
    return float(self.tokens_per_day) * 1e9 / _SECONDS_PER_DAY


MPFT = Column(
  name='MPFT',
  tokens_per_day='272.80',
  seconds_per_step='19.926',
  phases=Phases(1.13, 2.06, 1.99, 0.48, 13.95, 0.29),
  mfu='43.73',
  mfu_causal='38.94',
)
MRFT = Column(
  name='MRFT',
  tokens_per_day='272.52',
  seconds_per_step='19.946',
  phases=Phases(1.13, 2.03, 1.99, 0.48, 14.00, 0.31),
  mfu='43.68',
  mfu_causal='38.90',
)


def chunks() -> schedules.Costs:
  """Times of single chunks, from MPFT's phases and the counts of DualPipe.

  15,360 sequences over 128 data ranks are 120 micro-batches if a micro-batch is
  one sequence; the paper doesn't say. We take 1B to hold full backward chunks
  and those of the inputs.
  """
  phases = MPFT.phases
  counts = schedules.dual_counts(_STAGES, _MICRO_BATCHES)
  weight = phases.weight / counts['W']
  backward = phases.backward - counts['B'] * weight
  return schedules.Costs(
    forward=phases.forward / counts['F'],
    backward_input=backward / (counts['B'] + counts['I']),
    backward_weight=weight,
    pair=phases.pair / counts['FB'],
  )
