"""What is asked of a model is what its row says; a comparison is by seed."""

import pathlib
import sys

from absl.testing import absltest, parameterized
import numpy as np

# Experiments are scripts, not a package.
sys.path.extend(
  str(pathlib.Path(__file__).resolve().parents[2] / 'experiments' / name)
  for name in ('', 'deepseek_v3', 'yarn')
)
import deepseekmoe_ablation
import haystack

import comparison
from seekax.inference.scoring import all_logits
from seekax.model import router
from seekax.model.transformer import Transformer
import small_corpus
import small_runs


def _rows(domain):
  return small_corpus.draw_rows(np.random.default_rng(1), 8, 64, (domain,))


class AnswersTest(parameterized.TestCase):
  @parameterized.parameters(('arithmetic', 97), (small_corpus.DIGITS, 10))
  def test_digits_of_results_are_asked(self, domain, modulus):
    rows = _rows(domain)
    for tokens, asked in zip(rows.tokens, rows.answers, strict=True):
      line = bytes(tokens.astype(np.uint8)).decode()
      marked = ''.join(
        x if a else ' ' for x, a in zip(line, asked, strict=True)
      )
      for calculation in line.split(';')[:-1]:
        terms, _, result = calculation.partition('=')
        total = sum(map(int, terms.split('+'))) % modulus
        self.assertEqual(int(result), total)
      # The last sum may be cut short.
      results = [x.partition('=')[2] for x in line.split(';')]
      self.assertEqual(marked.split(), [x for x in results if x])

  @parameterized.parameters('names', small_corpus.LETTERS)
  def test_second_halves_of_names_seen_before_are_asked(self, domain):
    rows = _rows(domain)
    for tokens, asked in zip(rows.tokens, rows.answers, strict=True):
      known = {}
      for first, second, asks in zip(
        tokens[::2], tokens[1::2], asked[1::2], strict=False
      ):
        self.assertEqual(asks, first in known)
        self.assertEqual(known.setdefault(first, second), second)
      self.assertFalse(asked[::2].any())

  def test_others_ask_nothing(self):
    for domain in ('markov', 'brackets'):
      self.assertFalse(_rows(domain).answers.any())


class PairedTest(absltest.TestCase):
  def test_seeds_are_compared_with_themselves(self):
    measured = {
      f'{arm}, seed {seed}': {'loss': seed + shift * (1 + seed / 10)}
      for arm, shift in (('a', 1.0), ('b', 0.0))
      for seed in range(3)
    }
    difference = comparison.paired(measured, 'a', 'b', 'loss')
    self.assertAlmostEqual(difference.mean, 1.1)
    self.assertAlmostEqual(difference.error, 0.1 / 3**0.5)
    self.assertEqual(difference.sign, 1)
    self.assertEqual(comparison.paired(measured, 'b', 'a', 'loss').sign, 0)


class ProbeTest(absltest.TestCase):
  def test_the_best_experts_are_passed_over(self):
    size = small_runs.SMOKE
    model = small_runs.model_of(size, num_experts=8, experts_per_token=5)
    logits_TE = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    bias_E = np.zeros(8, np.float32)
    whole = router.route(logits_TE, bias_E, model)
    past = deepseekmoe_ablation.route_past(2, logits_TE, bias_E, model)
    order_TE = np.argsort(-logits_TE, axis=1)
    np.testing.assert_array_equal(past.experts_TA, order_TE[:, 2:5])
    self.assertEqual(past.gates_TA.shape, past.experts_TA.shape)
    np.testing.assert_array_equal(whole.experts_TA, order_TE[:, :5])


class HaystackTest(parameterized.TestCase):
  @parameterized.parameters((0.0, 1), (0.5, 8), (1.0, 15))
  def test_needle_lies_at_its_depth(self, depth, start):
    hay, needle, asked = (
      np.zeros(20, int),
      np.array([1, 2, 3]),
      np.array([4, 5]),
    )
    row = haystack.hide(hay, needle, asked, depth)
    np.testing.assert_array_equal(row[start : start + 3], needle)
    np.testing.assert_array_equal(row[-2:], asked)
    self.assertEqual(np.count_nonzero(row), 5)
    self.assertFalse(hay.any())

  def test_share_is_that_of_all_logits(self):
    model = small_runs.model_of(small_runs.SMOKE, ffn='dense')
    config = small_runs.config_of(small_runs.SMOKE, model)
    weights = small_runs.initial_state(config, 0).weights
    rows_BL = np.random.default_rng(0).integers(
      128, size=(4, 12), dtype=np.int32
    )
    logits, _ = all_logits(Transformer(model), weights, rows_BL)
    # What the model itself says, in half of the rows.
    rows_BL[:2, -1] = np.asarray(logits)[:2, -2].argmax(axis=-1)
    share = haystack.share_found(model, weights, list(rows_BL), 1)
    self.assertEqual(share, 0.5)


if __name__ == '__main__':
  absltest.main()
