"""Laws of scoring: windows, padding, likelihoods, drafts."""

import dataclasses
import math
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
import pytest

from seekax.configuration import presets
from seekax.inference import scoring
from seekax.model.parameters import init_weights
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights

_all_logits = jax.jit(scoring.all_logits, static_argnums=0)


class WindowsTest(parameterized.TestCase):
  @parameterized.product(
    length=(1, 2, 3, 7, 8, 9, 16, 17, 64, 65), context=(1, 2, 3, 8, 64)
  )
  def test_every_token_but_the_first_is_scored_once(self, length, context):
    scored = []
    for start, end, fresh in scoring.windows(length, context):
      self.assertLessEqual(end - start, context)
      scored += range(start + fresh + 1, end + 1)
    self.assertEqual(scored, list(range(1, length)))

  def test_every_window_but_the_first_sees_half_a_context(self):
    for start, _, fresh in list(scoring.windows(1000, 64))[1:]:
      self.assertGreaterEqual(fresh, 31)
      self.assertEqual(start % 32, 0)


class PaddingTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 163840, 256),
    (256, 163840, 256),
    (257, 163840, 512),
    (100_000, 163840, 131072),
    (140_000, 163840, 163840),
    (5, 32, 32),
  )
  def test_it_follows_the_text_up_to_the_context(self, length, context, padded):
    self.assertEqual(scoring.padded_length(length, context), padded)

  def test_work_follows_the_longest_window_and_the_number_of_them(self):
    config = dataclasses.replace(presets.tiny(), context_length=163840)
    model, weights = Transformer(config), Weights({}, {})
    shapes = []

    def scores(model, weights, tokens_BL, targets_BL):
      del model, weights, targets_BL
      shapes.append(tokens_BL.shape)
      return np.zeros(tokens_BL.shape)

    texts = [np.arange(n) for n in (20, 700, 21, 22)]
    with mock.patch.object(scoring, '_compiled_log_probabilities', scores):
      scoring.log_likelihoods(model, weights, texts[:1], 8)
      scoring.log_likelihoods(model, weights, texts, 2)
      scoring.log_likelihoods(model, weights, texts, 8, context=32)
    # A long window doesn't lengthen those that are computed after it.
    self.assertEqual(shapes[:3], [(1, 256), (2, 1024), (2, 256)])
    self.assertEqual(set(shapes[3:]), {(8, 32)})


class LogLikelihoodTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.config = presets.tiny()
    cls.model = Transformer(cls.config)
    cls.weights = jax.jit(init_weights, static_argnums=(0, 1))(cls.config, 0)
    draw = np.random.default_rng(0)
    # Longer than two windows, shorter than one, and bos alone.
    cls.sequences = [
      draw.integers(0, 512, size, dtype=np.int32) for size in (600, 100, 1)
    ]

  def score(self, sequences, batch_size=4):
    return scoring.log_likelihoods(
      self.model, self.weights, sequences, batch_size
    )

  def test_it_is_the_sum_over_windows_of_full_logits(self):
    totals = self.score(self.sequences)
    expected = 0.0
    tokens = self.sequences[0]
    for start, end, fresh in scoring.windows(600, 256):
      window = np.zeros((1, 256), np.int32)
      window[0, : end - start] = tokens[start:end]
      logits, _ = _all_logits(self.model, self.weights, window)
      logits = np.asarray(logits, np.float64)[0]
      for i in range(fresh, end - start):
        expected += logits[i, tokens[start + i + 1]] - math.log(
          np.exp(logits[i]).sum()
        )
    self.assertAlmostEqual(totals[0] / expected, 1, delta=1e-6)

  def test_sequences_do_not_know_of_each_other(self):
    together = self.score(self.sequences)
    alone = [self.score([sequence])[0] for sequence in self.sequences]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    self.assertEqual(together[2], 0.0)

  @pytest.mark.slow
  def test_acceptance_compares_drafts_with_what_the_model_says(self):
    config = dataclasses.replace(self.config, mtp_depth=2, context_length=40)
    model = Transformer(config)
    weights = jax.jit(init_weights, static_argnums=(0, 1))(config, 0)
    # Heads that make a few tokens likely, so that some drafts are right.
    head = weights.params['head'].at[:, 3:].multiply(0.01)
    weights = weights.replace(params={**weights.params, 'head': head})
    shares = scoring.acceptance(model, weights, self.sequences, 4)
    right, seen = np.zeros(2), np.zeros(2)
    for sequence in self.sequences:
      tokens = sequence[:40]
      main, mtp = _all_logits(model, weights, tokens[None])
      for depth in range(2):
        for i in range(len(tokens) - depth - 1):
          draft = np.argmax(mtp[depth, 0, i])
          right[depth] += draft == np.argmax(main[0, i + depth + 1])
          seen[depth] += 1
    np.testing.assert_allclose(shares, right / seen)
    self.assertBetween(min(shares), 0.05, 0.95)

  def test_bits_per_byte_of_a_coin_per_byte_is_one(self):
    self.assertAlmostEqual(scoring.bits_per_byte(-10 * math.log(2), 10), 1.0)


if __name__ == '__main__':
  absltest.main()
