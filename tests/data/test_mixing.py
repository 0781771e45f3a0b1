"""Laws of mixing: everyone's turn, in the asked share, from any position."""

import collections

from absl.testing import absltest, parameterized
import numpy as np

from seekax.data import mixing
from seekax.data.reading_rules import DataError

_RATES = ((1.0,), (0.7, 0.3), (0.5, 0.5), (1 / 3, 1 / 3, 1 / 3), (0.9999, 1e-4))


class TurnsTest(parameterized.TestCase):
  @parameterized.parameters(*[(rates,) for rates in _RATES])
  def test_each_source_counts_its_own_turns(self, rates):
    turns, counts = mixing.Turns(rates), collections.Counter()
    for position in range(25_000):
      source, count = turns[position]
      self.assertEqual(count, counts[source])
      counts[source] += 1
    self.assertLen(counts, len(rates))

  @parameterized.parameters(*[(rates,) for rates in _RATES])
  def test_every_stretch_has_the_shares(self, rates):
    turns = mixing.Turns(rates)
    sources = np.array([turns[position][0] for position in range(30_000)])
    for source, rate in enumerate(rates):
      seen = np.cumsum(sources == source)
      expected = rate * np.arange(1, len(sources) + 1)
      # Quotas are whole turns of 10,000: half a turn per period, and one more
      # inside.
      self.assertLess(np.abs(seen - expected).max(), 3)

  def test_far_positions_need_no_counting(self):
    source, count = mixing.Turns((0.7, 0.3))[10**15 + 4321]
    self.assertAlmostEqual(count / 10**15, (0.7, 0.3)[source], delta=1e-9)

  def test_a_source_that_never_has_a_turn_is_refused(self):
    with self.assertRaisesRegex(DataError, 'source 2 .* raise its weight'):
      mixing.Turns((1 - 1e-5, 1e-5))

  def test_rates_give_shares_of_tokens(self):
    rates = mixing.document_rates([0.5, 0.5], [100.0, 300.0])
    self.assertAlmostEqual(rates[0], 0.75)
    tokens = rates[0] * 100, rates[1] * 300
    self.assertAlmostEqual(tokens[0], tokens[1])


if __name__ == '__main__':
  absltest.main()
