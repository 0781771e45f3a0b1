"""Rates and batch size over a run, as functions of the tokens trained on.

They are computed on the host, in float64 and whole tokens, and passed to the
compiled step as numbers, so that a change compiles nothing again.

Reference: DeepSeek-V3, section 4.2.
"""

from collections.abc import Iterator
import math

from flax import struct
import jax
import numpy as np

from seekax.planning.batch_ramp import BatchRamp

# Two schedules are compared at this many evenly spaced steps, and at those
# where a phase ends.
_COMPARED = 1000
_SWITCHED = ('bias_update_rate', 'mtp_weight')


@struct.dataclass
class Rates:
  """The rates of one step, float32 scalars.

  Attributes:
    learning_rate: learning rate of the optimizer.
    bias_update_rate: rate of the router bias (gamma).
    mtp_weight: weight of the MTP loss (lambda).
  """

  learning_rate: jax.Array | np.float32
  bias_update_rate: jax.Array | np.float32
  mtp_weight: jax.Array | np.float32


class Schedule(BatchRamp):
  """The schedule of a run: its batches, and the rates of every step."""

  def learning_rate(self, step: int) -> float:
    """Linear warm-up, the peak, a cosine, the final rate, the last rate.

    The peak holds until `constant_tokens`, or the end of the warm-up if that is
    later; if `decay_tokens` is 0, the cosine ends with the run.
    """
    optim, tokens = self.config.optim, self.tokens_before(step)
    start, end = self._peak_end(), self.total_tokens
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
    """Gamma, which is 0 from `bias_update_tokens` on."""
    train = self.config.train
    ended = self._is_past(train.bias_update_tokens, step)
    return 0.0 if ended else train.bias_update_rate

  def mtp_weight(self, step: int) -> float:
    """Lambda, which changes at `mtp_weight_tokens`."""
    train = self.config.train
    late = self._is_past(train.mtp_weight_tokens, step)
    return train.mtp_late_weight if late else train.mtp_weight

  def _is_past(self, tokens: int, step: int) -> bool:
    """Whether a step has at least this many tokens before it; False for 0."""
    return bool(tokens) and self.tokens_before(step) >= tokens

  def rates(self, step: int) -> Rates:
    """Returns the rates for the compiled step."""
    return Rates(
      learning_rate=np.float32(self.learning_rate(step)),
      bias_update_rate=np.float32(self.bias_update_rate(step)),
      mtp_weight=np.float32(self.mtp_weight(step)),
    )

  @property
  def decay_tokens(self) -> int:
    """Tokens of the cosine; computed if the config ends it with the run."""
    optim = self.config.optim
    return optim.decay_tokens or max(self.total_tokens - self._peak_end(), 0)

  def _peak_end(self) -> int:
    """Number of tokens, with the warm-up, after which the peak ends."""
    optim = self.config.optim
    return max(optim.constant_tokens, self.tokens_before(optim.warmup_steps))

  def first_difference(self, other: 'Schedule', step: int) -> str:
    """Returns how two schedules differed in the steps before this one.

    Args:
      other: the schedule to compare with.
      step: number of steps already done.

    Returns:
      Name and values of the first difference found, '' if there is none.
    """
    wanted = {round(step * i / _COMPARED) for i in range(_COMPARED)}
    for plan in (self, other):
      wanted |= {end + i for end in plan._phase_ends() for i in (-1, 0, 1)}
    for k in sorted(k for k in wanted if 0 <= k < step):
      for name in ('batch_tokens', 'learning_rate', *_SWITCHED):
        ours, theirs = getattr(self, name)(k), getattr(other, name)(k)
        if ours != theirs:
          return f'{name} of step {k + 1:,}: {ours:g} and {theirs:g}'
    return ''

  def _phase_ends(self) -> Iterator[int]:
    """Steps at which a phase ends, also those of the batch ramp."""
    optim, train = self.config.optim, self.config.train
    decayed = self._peak_end() + self.decay_tokens
    yield optim.warmup_steps
    for tokens in (self._peak_end(), decayed, decayed + optim.final_tokens):
      yield self.step_at(tokens)
    for tokens in (train.mtp_weight_tokens, train.bias_update_tokens):
      yield self.step_at(tokens)
    for stretch in self._stretches:
      yield stretch.step
