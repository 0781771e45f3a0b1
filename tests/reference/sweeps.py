"""What the property-based sweeps share: settings, dtypes, bounds and draws.

Compiling takes nearly all of a sweep's time: shapes are few, values many.
"""

from hypothesis import Phase, settings, strategies
import ml_dtypes
import numpy as np

# A failure is reported as it was found: every step of shrinking would compile.
SWEEP = settings(
  max_examples=12,
  deadline=None,
  derandomize=True,
  database=None,
  phases=(Phase.explicit, Phase.generate),
)

DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
}
# The largest relative error of one rounding to bfloat16, which has 8 bits.
BFLOAT16 = 2.0**-8
# Bounds are shares of the largest expected entry; oracles are given the inputs
# as they are after their rounding. In float32 a sum of n terms is off by at
# most n * 2**-24 of the sum of their sizes, and by about the root of that many
# times 2**-24: with n below 300 and sizes that add up to a few times the
# largest result, 1e-5 is ten times what is to be expected.
FLOAT32_BOUND = 1e-5


def bounds(bfloat16_roundings: int) -> dict[str, float]:
  """Of every dtype, where so many roundings follow each other in bfloat16.

  Sums are float32 in both dtypes, so that only what is stored is rounded; that
  many full roundings, all in one direction, are more than is to be expected.
  """
  return {
    'float32': FLOAT32_BOUND,
    'bfloat16': FLOAT32_BOUND + bfloat16_roundings * BFLOAT16,
  }


def normal(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
  return rng.standard_normal(shape).astype(DTYPES[dtype])


def float64(*arrays: np.ndarray) -> list[np.ndarray]:
  return [np.asarray(x, np.float64) for x in arrays]


seeds = strategies.integers(0, 999)


def group_sizes(experts: int, rows: int) -> strategies.SearchStrategy:
  """Rows of each expert, at most so many together.

  None; none or one each; all with one expert; all, cut anywhere; any few.
  """

  def one_takes_all(expert):
    return [rows * (e == expert) for e in range(experts)]

  def cut(places):
    return np.diff([0, *sorted(places), rows]).tolist()

  def lists(values, count):
    return strategies.lists(values, min_size=count, max_size=count)

  return strategies.one_of(
    lists(strategies.integers(0, rows // experts), experts),
    lists(strategies.integers(0, 1), experts),
    strategies.integers(0, experts - 1).map(one_takes_all),
    lists(strategies.integers(0, rows), experts - 1).map(cut),
  )


def choices(
  tokens: int, per_token: int, experts: int
) -> strategies.SearchStrategy:
  """Chosen experts [T, A] int32; id E is nobody.

  Distinct within a token; all with one expert; nobody's; anything.
  """

  def draw(kind, seed):
    rng = np.random.default_rng(seed)
    shape = tokens, per_token
    match kind:
      case 'distinct':
        found = [rng.permutation(experts)[:per_token] for _ in range(tokens)]
      case 'one':
        found = np.full(shape, rng.integers(experts))
      case 'nobody':
        found = np.full(shape, experts)
      case 'any':
        found = rng.integers(0, experts + 1, shape)
      case _:
        raise ValueError(kind)
    return np.array(found, np.int32)

  kinds = strategies.sampled_from(('distinct', 'one', 'nobody', 'any'))
  return strategies.builds(draw, kinds, seeds)


def documents(length: int) -> strategies.SearchStrategy:
  """Document numbers [L] int32.

  One document; every position its own; cut anywhere; numbers that come again.
  """

  def lists(values):
    return strategies.lists(values, min_size=length, max_size=length)

  return strategies.one_of(
    strategies.just([1] * length),
    strategies.just(list(range(length))),
    lists(strategies.booleans()).map(lambda ends: np.cumsum(ends).tolist()),
    lists(strategies.integers(0, 2)),
  ).map(lambda numbers: np.array(numbers, np.int32))
