"""The group `optim`: the optimizer and its learning rate."""

import dataclasses

from seekax.configuration.fields import (
  check_not_negative,
  check_positive,
  key,
  require,
  require_choice,
)

OPTIMIZERS = ('adamw', 'muon')
MOMENT_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """The optimizer and its rate, scheduled by the tokens trained on."""

  name: str = key('adamw', 'adamw, or muon for the matrices')

  learning_rate: float = key(2.2e-4, 'peak learning rate')
  final_learning_rate: float = key(2.2e-5, 'learning rate after the cosine')
  last_learning_rate: float = key(
    7.3e-6, 'learning rate after final_tokens have passed'
  )
  warmup_steps: int = key(2000, 'steps of linear warm-up from 0')
  constant_tokens: int = key(
    10_000_000_000_000, 'tokens until the cosine begins, warm-up included'
  )
  decay_tokens: int = key(0, 'tokens of cosine decay; 0: to the end of the run')
  final_tokens: int = key(
    0, 'tokens at final_learning_rate; 0: to the end of the run'
  )
  beta1: float = key(0.9, "Adam's first decay")
  beta2: float = key(0.95, "Adam's second decay")
  eps: float = key(1e-8, "Adam's epsilon")
  moment_dtype: str = key(
    'float32', 'dtype of the moments: float32, or bfloat16 as in V3'
  )
  weight_decay: float = key(0.1, 'decoupled decay of matrices (not of norms)')
  clip_norm: float = key(1.0, 'largest global gradient norm')
  ema_decay: float = key(
    0.0, 'decay per step of averaged weights, kept on the host; 0: none'
  )
  ema_every: int = key(10, 'steps between updates of averaged weights')

  def __post_init__(self):
    require_choice('optim.name', self.name, OPTIMIZERS)
    require_choice('optim.moment_dtype', self.moment_dtype, MOMENT_DTYPES)
    check_positive(
      'optim',
      self,
      ('learning_rate', 'eps', 'clip_norm', 'ema_every'),
    )
    check_not_negative(
      'optim',
      self,
      ('final_learning_rate', 'last_learning_rate', 'warmup_steps')
      + ('constant_tokens', 'decay_tokens', 'final_tokens', 'weight_decay'),
    )
    for name in ('beta1', 'beta2', 'ema_decay'):
      value = getattr(self, name)
      require(0 <= value < 1, f'optim.{name}={value} is not in [0, 1)')
