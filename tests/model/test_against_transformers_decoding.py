"""Greedy continuations against transformers' recorded ones.

Prompts are read by full attention, the rest by absorbed MLA on the latent
cache; transformers' choices won by at least 1e-4 of the logits' scale.
"""

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
import pytest

from model import test_against_transformers as recorded
from reference import cases
from seekax.inference import engine
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights

_prefill = cases.jit(engine.prefill, static_argnums=(0, 4))
_decode = cases.jit(engine.decode, static_argnums=0)


def _greedy(model, weights, prompts_BL, count):
  """The likeliest tokens [B, count] after equally long prompts."""
  batch, length = prompts_BL.shape
  logits_BV, cache = _prefill(
    model,
    weights,
    prompts_BL,
    np.full(batch, length, np.int32),
    length + count,
  )
  tokens = [jnp.argmax(logits_BV, axis=-1)]
  for _ in range(count - 1):
    logits_BV, cache = _decode(model, weights, tokens[-1], cache)
    tokens.append(jnp.argmax(logits_BV, axis=-1))
  return np.stack(tokens, axis=1)


class DecodingTest(parameterized.TestCase):
  def _check(self, name):
    fixture = recorded.read(name)
    prompts, expected = fixture.answers['prompts'], fixture.answers['greedy']
    self.assertEqual(expected.shape, (2, 64))
    if fixture.config.rope_scaling != 'none':
      original, length = fixture.config.rope_original_length, prompts.shape[1]
      self.assertBetween(original, length + 1, length + 63)
    self.assertGreater(fixture.about['greedy_margin'], 1e-4)
    self.assertGreater(len(np.unique(expected)), 20)
    weights = Weights(fixture.params, fixture.router_bias)
    actual = _greedy(Transformer(fixture.config), weights, prompts, 64)
    np.testing.assert_array_equal(actual, expected)

  @parameterized.parameters(
    'v3', 'v3_no_query_latent', 'moonlight', 'v2', 'llama'
  )
  def test_greedy_continuations_are_the_recorded_ones(self, name):
    self._check(name)

  @parameterized.parameters('v3_no_groups', 'v3_shared', 'v2_lite')
  @pytest.mark.slow
  def test_greedy_continuations_are_the_recorded_ones_too(self, name):
    self._check(name)


if __name__ == '__main__':
  absltest.main()
