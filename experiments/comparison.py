"""Arms of a comparison, seed by seed.

The numbers of an arm are those of its jobs '<arm>, seed 0', '<arm>, seed 1' and
so on. Arms are paired by seed: their runs see the same batches in the same
order, and start from the same weights where shapes allow (an initial weight
depends on its name and the seed).
"""

import dataclasses
import math

import numpy as np

import script
import verdicts


@dataclasses.dataclass(frozen=True)
class Difference:
  """A mean over paired seeds and its standard error."""

  mean: float
  error: float

  @property
  def sign(self) -> float:
    """1 above two standard errors, 0 below minus two, NaN between."""
    if not abs(self.mean) > 2 * self.error:
      return math.nan
    return float(self.mean > 0)

  def __str__(self) -> str:
    if math.isnan(self.mean):
      return 'not measured'
    return f'{self.mean:+.4f}, standard error {self.error:.4f}'


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
  """The first numbers minus the second.

  Args:
    first: a number per seed.
    second: a number per seed.

  Returns:
    NaN if there are no numbers, or not as many of both.
  """
  if not (len(first) and len(first) == len(second)):
    return Difference(math.nan, math.nan)
  differences = first - second
  error = differences.std(ddof=1) / math.sqrt(len(differences))
  return Difference(float(differences.mean()), float(error))


def values(measured: script.Measured, arm: str, name: str) -> np.ndarray:
  """A number of an arm, for all its seeds in order."""
  seed, found = 0, []
  while (job := f'{arm}, seed {seed}') in measured:
    found.append(measured[job][name])
    seed += 1
  return np.array(found)


def paired(
  measured: script.Measured,
  first: str,
  second: str,
  name: str,
  second_name: str = '',
) -> Difference:
  """`name` of the first arm minus that of the second, seed by seed.

  Args:
    measured: numbers of every job '<arm>, seed <n>'.
    first: an arm.
    second: the arm that it is compared with.
    name: the number's name.
    second_name: the name of the second arm's number, if it is another one.
  """
  return difference(
    values(measured, first, name),
    values(measured, second, second_name or name),
  )


def order(
  measured: script.Measured,
  claim: str,
  first: str,
  second: str,
  name: str,
  second_name: str = '',
) -> verdicts.Claim:
  """The claim that the first arm's number is above the second's, as `paired`.

  Ours is 1 if it is by more than two standard errors, 0 if it is below by as
  much, NaN (inconclusive) between.
  """
  found = paired(measured, first, second, name, second_name)
  return verdicts.holds(claim, found.sign, str(found))


def curve(measured: script.Measured, arm: str) -> tuple[list[int], np.ndarray]:
  """The numbers of an arm that are named 'step <n>'.

  Returns:
    (the steps, the numbers [seeds, steps]).
  """
  first = measured[f'{arm}, seed 0']
  names = [name for name in first if name.startswith('step ')]
  steps = [int(name.partition(' ')[2]) for name in names]
  return steps, np.stack([values(measured, arm, x) for x in names], axis=1)
