"""Which settings of sampling can be. Imports no JAX: commands ask at once."""

import math

from seekax.configuration.errors import InputError
from seekax.configuration.train import MAX_SEED


def check_sampling(
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  seed: int = 0,
) -> None:
  """Refuses settings that can't be; `sampling.Settings` says what each is.

  Raises:
    InputError: a value is out of its range.
  """
  # A NaN fails every comparison.
  if not 0 <= temperature < math.inf:
    raise InputError(f'temperature={temperature} is negative, or no number')
  if top_k < 0:
    raise InputError(f'top_k={top_k} is negative; 0 keeps all tokens')
  if not 0 < top_p <= 1:
    raise InputError(f'top_p={top_p} is not in (0, 1]')
  if not 0 <= min_p <= 1:
    raise InputError(f'min_p={min_p} is not in [0, 1]')
  if not 0 <= seed <= MAX_SEED:
    raise InputError(f'seed={seed} is not in 0 to {MAX_SEED}')


def check_new_tokens(max_new_tokens: int) -> None:
  """Refuses a number of new tokens that can't be.

  Raises:
    InputError: it is below 1.
  """
  if max_new_tokens < 1:
    raise InputError(f'max_new_tokens={max_new_tokens} is below 1')
