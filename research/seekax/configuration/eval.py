"""The group `eval`: held-out evaluation and samples during training."""

import dataclasses

from seekax.configuration.fields import check_not_negative, check_positive, key


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Held-out evaluation and samples during training."""

  every: int = key(1000, 'steps between evaluations')
  batch_size: int = key(8, 'windows scored at once')
  max_bytes: int = key(
    0, 'held-out bytes per evaluation; the last takes all; 0: all'
  )
  sample_every: int = key(1000, 'steps between samples')
  sample_tokens: int = key(64, 'tokens per sample')
  sample_temperature: float = key(
    0.7, 'temperature of the samples; 0 is greedy'
  )
  prompts: tuple[str, ...] = key(
    ('def main(', 'import os\n', 'class Node:\n'), 'fixed prompts for samples'
  )

  def __post_init__(self):
    check_positive(
      'eval', self, ('every', 'batch_size', 'sample_every', 'sample_tokens')
    )
    check_not_negative('eval', self, ('max_bytes', 'sample_temperature'))
