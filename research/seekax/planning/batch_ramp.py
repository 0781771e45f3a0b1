"""The batch along a run: whole micro-batches, more of them as tokens go by.

DeepSeek-V3 (section 4.2) goes from 3,072 to 15,360 sequences over the first
469B tokens. The number of micro-batches changes at most as often as there are
micro-batches, so a short list answers every question, however long the ramp or
the run is.
"""

import bisect
from typing import NamedTuple

from seekax.configuration.config import Config


class _Stretch(NamedTuple):
  """Steps of one size: the first one, the tokens before it, micro-batches."""

  step: int
  tokens: int
  parts: int


class BatchRamp:
  """Batches and tokens of a run. Step k has k steps before it.

  Attributes:
    config: the run's config.
  """

  def __init__(self, config: Config):
    self.config = config
    self._part_tokens = (
      config.data.batch_size
      // config.train.micro_batches
      * config.data.sequence_length
    )
    self._stretches = self._all_stretches()

  def _all_stretches(self) -> list[_Stretch]:
    train = self.config.train
    full, first = train.micro_batches, train.ramp_micro_batches
    if not train.ramp_tokens:
      return [_Stretch(0, 0, full)]
    found, step, tokens = [], 0, 0
    while True:
      grown = (full - first) * tokens // train.ramp_tokens
      parts = min(first + grown, full)
      found.append(_Stretch(step, tokens, parts))
      if parts == full:
        return found
      # Another micro-batch comes with the first step that has so many tokens
      # before it; -(-a // b) rounds up.
      needed = -(-(parts + 1 - first) * train.ramp_tokens // (full - first))
      steps = -(-(needed - tokens) // (parts * self._part_tokens))
      step += steps
      tokens += steps * parts * self._part_tokens

  def _stretch_of(self, step: int) -> _Stretch:
    place = bisect.bisect_right(self._stretches, step, key=lambda s: s.step)
    return self._stretches[max(place - 1, 0)]

  @property
  def total_tokens(self) -> int:
    """Tokens of the whole run."""
    return self.tokens_before(self.config.train.steps)

  def tokens_before(self, step: int) -> int:
    """Tokens trained on in the steps before this one."""
    start = self._stretch_of(step)
    return start.tokens + (step - start.step) * start.parts * self._part_tokens

  def step_at(self, tokens: int) -> int:
    """The first step that has at least so many tokens before it."""
    if tokens <= 0:
      return 0
    place = bisect.bisect_right(self._stretches, tokens, key=lambda s: s.tokens)
    start = self._stretches[place - 1]
    left = tokens - start.tokens
    return start.step - (-left // (start.parts * self._part_tokens))

  def micro_batches(self, step: int) -> int:
    """Parts of this step's batch, all of one size."""
    return self._stretch_of(step).parts

  def batch_rows(self, step: int) -> int:
    """Sequences of this step's batch."""
    return self.batch_tokens(step) // self.config.data.sequence_length

  def batch_tokens(self, step: int) -> int:
    """Tokens of this step's batch."""
    return self.micro_batches(step) * self._part_tokens
