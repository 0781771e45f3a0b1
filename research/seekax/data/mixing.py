"""The order in which a mixture takes documents from its sources."""

from collections.abc import Sequence
import math

import numpy as np

from seekax.data.reading_rules import DataError

# The pattern of sources repeats after this many turns, so shares are exact to
# 0.5/_PERIOD. (grain's own mix rounds every weight down to a hundredth of the
# smallest one.)
_PERIOD = 10_000


def document_rates(
  weights: Sequence[float], mean_tokens: Sequence[float]
) -> list[float]:
  """Shares of documents that give these shares of tokens.

  Args:
    weights: each source's share of the tokens.
    mean_tokens: mean number of tokens in a document of each source.
  """
  rates = [w / mean for w, mean in zip(weights, mean_tokens, strict=True)]
  return [rate / math.fsum(rates) for rate in rates]


class Turns:
  """Which source gives the document at each position of an endless order.

  The pattern is fixed, without randomness, and spreads every source as evenly
  as possible, so that any stretch of it has the right shares.
  """

  def __init__(self, rates: Sequence[float]):
    """Makes the pattern.

    Args:
      rates: each source's share of the turns, in sum 1.

    Raises:
      DataError: a source would never have a turn.
    """
    quotas = _largest_remainders(rates)
    if 0 in quotas:
      raise DataError(
        f'source {quotas.index(0) + 1} of data.source would give less than 1 '
        f'in {_PERIOD} documents; raise its weight'
      )
    # Each source's turns stand at the middles of equal intervals.
    middles = [(np.arange(q) + 0.5) / q for q in quotas]
    owners = np.repeat(np.arange(len(quotas)), quotas)
    order = np.argsort(np.concatenate(middles), kind='stable')
    self._quotas, self._owners = quotas, owners[order]
    # How many turns the source had before, within the period.
    counts = np.concatenate([np.arange(q) for q in quotas])
    self._counts = counts[order]

  def __getitem__(self, position: int) -> tuple[int, int]:
    """Returns (source, how many turns it had before)."""
    period, turn = divmod(position, _PERIOD)
    owner = int(self._owners[turn])
    return owner, period * self._quotas[owner] + int(self._counts[turn])


def _largest_remainders(rates: Sequence[float]) -> list[int]:
  exact = [rate * _PERIOD for rate in rates]
  quotas = [math.floor(x) for x in exact]
  by_remainder = sorted(range(len(rates)), key=lambda n: quotas[n] - exact[n])
  for n in by_remainder[: _PERIOD - sum(quotas)]:
    quotas[n] += 1
  return quotas
