"""The group `train`: the steps of a run, its losses, its checkpoints."""

import dataclasses

from seekax.configuration.fields import (
  check_not_negative,
  check_positive,
  key,
  require,
  require_choice,
)

# Maximum number of micro-batches in a batch, and so of sizes in a batch ramp.
MAX_MICRO_BATCHES = 2**16
# The largest seed that every random generator here takes.
MAX_SEED = 2**31 - 1
# Precisions of inference, and of training.
PRECISIONS = ('float32', 'bfloat16')
TRAIN_PRECISIONS = (*PRECISIONS, 'fp8')


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The training run."""

  steps: int = key(235000, 'optimizer steps')
  micro_batches: int = key(
    1, 'parts that a batch is computed in; the update is the same'
  )
  ramp_tokens: int = key(
    0, 'tokens over which the batch grows, by whole micro-batches; 0: no ramp'
  )
  ramp_micro_batches: int = key(1, 'micro-batches of the first step of a ramp')
  seed: int = key(0, 'seed of the initial weights')
  precision: str = key(
    'bfloat16', 'float32, bfloat16, or fp8: bfloat16 with linear layers in FP8'
  )
  mtp_weight: float = key(0.3, 'weight of the MTP loss (lambda)')
  mtp_late_weight: float = key(
    0.1, 'weight of the MTP loss after mtp_weight_tokens'
  )
  mtp_weight_tokens: int = key(
    0, 'tokens after which mtp_late_weight holds; 0: never'
  )
  balance_weight: float = key(1e-4, 'sequence-wise balance loss (alpha)')
  z_loss_weight: float = key(
    0.0, "weight of the squared log Z of each target's softmax; PaLM: 1e-4"
  )
  bias_update_rate: float = key(1e-3, 'router bias speed per step (gamma)')
  bias_update_tokens: int = key(
    0, 'tokens after which the router bias stands still; 0: never'
  )
  nonfinite_limit: int = key(
    3, 'steps in a row without a finite loss and gradient that end the run'
  )
  spike_deviations: float = key(
    0.0,
    'a step is skipped whose loss or gradient norm is so many deviations above '
    'the mean of the last ones; 0: none is',
  )
  spike_window: int = key(
    128, 'number of last steps that spike_deviations looks at'
  )
  init_from: str = key('', 'checkpoint whose weights the run starts from')
  extend_context: bool = key(
    False, "init_from's weights get this run's context and rotary embedding"
  )
  log_every: int = key(10, 'steps between log lines')
  checkpoint_every: int = key(1000, 'steps between checkpoints')
  keep_checkpoints: int = key(2, 'number of newest checkpoints that are kept')
  price_per_device_hour: float = key(
    0.0, 'price of a device in dollars per hour; 0: none'
  )
  compilation_cache: str = key(
    'auto',
    "folder of compiled programs; 'auto': seekax/xla in $XDG_CACHE_HOME or "
    "~/.cache; '': none",
  )
  replay_every: int = key(
    0, 'steps between two that are computed twice and compared; 0: none'
  )
  profile_steps: str = key(
    '', "steps to trace into <workdir>/profile, '10' or '10:13'; '': none"
  )

  @property
  def compute_dtype(self) -> str:
    """The dtype of all that isn't FP8, also in evaluation and samples."""
    return 'bfloat16' if self.precision == 'fp8' else self.precision

  def __post_init__(self):
    require_choice('train.precision', self.precision, TRAIN_PRECISIONS)
    require(
      0 <= self.seed <= MAX_SEED,
      f'train.seed={self.seed} is not in 0 to {MAX_SEED}',
    )
    check_positive(
      'train',
      self,
      ('steps', 'micro_batches', 'log_every', 'checkpoint_every')
      + ('keep_checkpoints', 'ramp_micro_batches', 'nonfinite_limit')
      + ('spike_window',),
    )
    check_not_negative(
      'train',
      self,
      ('mtp_weight', 'balance_weight', 'z_loss_weight', 'bias_update_rate')
      + ('price_per_device_hour', 'ramp_tokens', 'mtp_late_weight')
      + ('mtp_weight_tokens', 'bias_update_tokens', 'spike_deviations')
      + ('replay_every',),
    )
    require(
      self.ramp_micro_batches <= self.micro_batches,
      f'train.ramp_micro_batches={self.ramp_micro_batches} is above '
      f'train.micro_batches={self.micro_batches}; a batch only grows',
    )
    require(
      self.micro_batches <= MAX_MICRO_BATCHES,
      f'train.micro_batches={self.micro_batches} is above {MAX_MICRO_BATCHES}',
    )
    _, last_profiled = profiled_steps(self.profile_steps)
    require(
      last_profiled <= self.steps,
      f'train.profile_steps={self.profile_steps!r} is past the last of '
      f'train.steps={self.steps}',
    )


def profiled_steps(description: str) -> tuple[int, int]:
  """Reads '10:13' into (10, 13), '10' into (10, 10), '' into (0, -1).

  Returns:
    First and last step, counted from 1 and both included; none for ''.

  Raises:
    ConfigError: it isn't of that form, or the steps can't be profiled.
  """
  if not description:
    return 0, -1
  words = description.split(':')
  require(
    len(words) <= 2 and all(w.isascii() and w.isdecimal() for w in words),
    f"train.profile_steps={description!r}: write a step or two, '10' or "
    "'10:13', both ends included",
  )
  first, last = int(words[0]), int(words[-1])
  require(
    first >= 2,
    f'train.profile_steps={description!r}: steps count from 1, and the first '
    'compiles the program; begin at 2 or later',
  )
  require(
    first <= last,
    f'train.profile_steps={description!r} ends before it begins',
  )
  return first, last
