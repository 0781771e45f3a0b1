"""What changes along a run, by the tokens trained on: rates and batch size.

Computed on the host, in float64 and whole tokens, and handed to the compiled
step as numbers, so that nothing is compiled anew when one of them changes.

Reference: DeepSeek-V3, section 4.2.
"""

import bisect
import math

from flax import struct
import numpy as np

from seekax.config import Config


@struct.dataclass
class Rates:
  """What a step is told; float32 scalars.

  Attributes:
    learning_rate: of the optimizer.
    bias_update_rate: of the router bias (gamma).
    mtp_weight: of the MTP loss (lambda).
  """

  learning_rate: np.ndarray
  bias_update_rate: np.ndarray
  mtp_weight: np.ndarray


class Schedule:
  """The plan of a run. Steps count from 0: step k has k steps before it.

  Attributes:
    config: the run.
  """

  def __init__(self, config: Config):
    self.config = config
    full = config.train.micro_batches
    self._part_tokens = (
      config.data.batch_size // full * config.data.sequence_length
    )
    # Tokens before each step of the ramp, and before the first full batch.
    self._ramp = [0]
    while (parts := self._parts_at(self._ramp[-1])) < full:
      self._ramp.append(self._ramp[-1] + parts * self._part_tokens)

  def _parts_at(self, tokens: int) -> int:
    """Micro-batches of the step that follows so many tokens."""
    train = self.config.train
    if not train.ramp_tokens:
      return train.micro_batches
    first, full = train.ramp_micro_batches, train.micro_batches
    return min(first + (full - first) * tokens // train.ramp_tokens, full)

  @property
  def total_tokens(self) -> int:
    """Tokens of the whole run."""
    return self.tokens_before(self.config.train.steps)

  def tokens_before(self, step: int) -> int:
    """Tokens trained on in the steps before this one."""
    if step < len(self._ramp):
      return self._ramp[step]
    full = self.config.train.micro_batches * self._part_tokens
    return self._ramp[-1] + (step - len(self._ramp) + 1) * full

  def step_at(self, tokens: int) -> int:
    """The first step that has at least so many tokens before it."""
    if tokens <= self._ramp[-1]:
      return bisect.bisect_left(self._ramp, tokens)
    full = self.config.train.micro_batches * self._part_tokens
    return len(self._ramp) - 1 - (self._ramp[-1] - tokens) // full

  def micro_batches(self, step: int) -> int:
    """Parts of this step's batch, each as large as any other."""
    return self._parts_at(self.tokens_before(step))

  def batch_rows(self, step: int) -> int:
    """Sequences of this step's batch."""
    return self.batch_tokens(step) // self.config.data.sequence_length

  def batch_tokens(self, step: int) -> int:
    """Tokens of this step's batch."""
    return self.micro_batches(step) * self._part_tokens

  def learning_rate(self, step: int) -> float:
    """Linear warm-up, the peak, a cosine, the final rate, the last one.

    The peak holds until `constant_tokens`, or the end of the warm-up if that is
    later; the cosine's end is the run's if `decay_tokens` is 0.
    """
    optim, tokens = self.config.optim, self.tokens_before(step)
    start = max(optim.constant_tokens, self.tokens_before(optim.warmup_steps))
    end = self.total_tokens
    if optim.decay_tokens:
      end = start + optim.decay_tokens
    if optim.final_tokens and tokens >= end + optim.final_tokens:
      return optim.last_learning_rate
    warmup = min((step + 1) / max(optim.warmup_steps, 1), 1.0)
    progress = min(max((tokens - start) / max(end - start, 1), 0.0), 1.0)
    peak, final = optim.learning_rate, optim.final_learning_rate
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return warmup * (final + (peak - final) * cosine)

  def bias_update_rate(self, step: int) -> float:
    """Gamma; 0 from `bias_update_tokens` on."""
    train = self.config.train
    ended = self._is_past(train.bias_update_tokens, step)
    return 0.0 if ended else train.bias_update_rate

  def mtp_weight(self, step: int) -> float:
    """Lambda; the late one from `mtp_weight_tokens` on."""
    train = self.config.train
    late = self._is_past(train.mtp_weight_tokens, step)
    return train.mtp_late_weight if late else train.mtp_weight

  def _is_past(self, tokens: int, step: int) -> bool:
    """Whether a step has so many tokens before it; never for 0."""
    return bool(tokens) and self.tokens_before(step) >= tokens

  def rates(self, step: int) -> Rates:
    """What the compiled step is told."""
    return Rates(
      learning_rate=np.float32(self.learning_rate(step)),
      bias_update_rate=np.float32(self.bias_update_rate(step)),
      mtp_weight=np.float32(self.mtp_weight(step)),
    )
