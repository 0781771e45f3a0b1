"""Laws of generation."""

import dataclasses

from absl.testing import absltest, parameterized
import numpy as np

from reference import cases
from seekax.inference import engine
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights

# Quick to compile, for laws that hold for every model.
_CONFIG = cases.LLAMA
_PROMPT = np.array([3, 17, 8, 3], np.int32)


def _generate(prompt, count, config=_CONFIG, **options):
  model, weights = Transformer(config), Weights(*cases.weights(config, 1))
  return list(engine.generate(model, weights, prompt, count, **options))


def _greedy_by_the_full_model(config, count):
  params, bias = cases.weights(config, 1)
  tokens = list(_PROMPT)
  rows = cases.batch(config)
  rows = dataclasses.replace(
    rows, positions_BL=np.tile(np.arange(cases.LENGTH, dtype=np.int32), (2, 1))
  )
  one = np.ones_like(rows.segments_BL)
  for _ in range(count):
    padded = np.zeros_like(rows.tokens_BL)
    padded[0, : len(tokens)] = tokens
    rows = dataclasses.replace(rows, tokens_BL=padded)
    out = cases.run(config, params, bias, rows, one)
    tokens.append(int(np.argmax(out.logits_BLV[0, len(tokens) - 1])))
  return tokens[len(_PROMPT) :]


class GenerateTest(parameterized.TestCase):
  @parameterized.parameters(cases.V3_ONE_MTP, cases.LLAMA)
  def test_greedy_equals_re_running_the_full_model(self, config):
    expected = _greedy_by_the_full_model(config, 8)
    self.assertGreater(len(set(expected)), 1)
    self.assertEqual(_generate(_PROMPT, 8, config), expected)

  def test_eos_ends_the_text_and_is_not_given(self):
    greedy = _generate(_PROMPT, 8)
    eos = greedy[3]
    stopped = _generate(_PROMPT, 8, end_ids=(eos,))
    self.assertEqual(stopped, greedy[: greedy.index(eos)])

  def test_generation_stops_where_the_context_is_full(self):
    prompt = np.arange(60, dtype=np.int32) % 29
    self.assertLen(_generate(prompt, 99), _CONFIG.context_length - 60)

  def test_prompt_must_fit(self):
    for length in (0, 64, 65):
      with self.assertRaisesRegex(ValueError, f'{length} tokens'):
        _generate(np.zeros(length, np.int32), 1)

  def test_seed_decides_the_draws(self):
    options = dict(temperature=2.0, top_p=0.95)
    first = _generate(_PROMPT, 12, seed=1, **options)
    self.assertEqual(_generate(_PROMPT, 12, seed=1, **options), first)
    self.assertNotEqual(_generate(_PROMPT, 12, seed=2, **options), first)

  def test_nothing_wanted_nothing_given(self):
    self.assertEqual(_generate(_PROMPT, 0), [])


if __name__ == '__main__':
  absltest.main()
