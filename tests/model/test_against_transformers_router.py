"""Choices of experts against those of transformers' own routers, recorded.

20,000 random vectors go through the router of every expert layer. The vectors
aren't stored but drawn again from their seed.
"""

from typing import Any
from unittest import mock

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np

from model import test_against_transformers as recorded
from reference import cases
from reference import router as oracle
from seekax.model import router

# What wins by less, relative to the largest selection score, is decided by
# float32's last digits.
_NEAR_TIE = 1e-6
# In 20,000 tokens.
_MOST_TIES = 5


def _choices(fixture, layer, inputs_TD):
  """Our router's experts [T, A] in ascending order."""
  experts = fixture.params['expert_layers']['experts']
  kernel_DE = experts['router']['kernel'][layer]
  module = router.Router(fixture.config)

  def choose(inputs_TD, bias_E):
    variables = {'params': {'kernel': kernel_DE}}
    routing: Any = module.apply(variables, inputs_TD, bias_E)
    return routing.experts_TA

  bias_E = _bias(fixture, layer)
  return np.sort(cases.jit(choose)(inputs_TD, bias_E), axis=1)


def _bias(fixture, layer):
  if not fixture.router_bias:
    return np.zeros(fixture.config.num_experts, np.float32)
  return fixture.router_bias['layers'][layer]


def _differing(fixture, layer):
  """(input vectors, tokens whose sets of experts aren't the recorded ones)."""
  expected_TA = fixture.answers['choices'][layer]
  draw = np.random.default_rng(fixture.about['router']['seed'])
  inputs_TD = draw.standard_normal(
    (len(expected_TA), fixture.config.embed_dim), dtype=np.float32
  )
  actual_TA = _choices(fixture, layer, inputs_TD)
  return inputs_TD, np.flatnonzero((actual_TA != expected_TA).any(axis=1))


class RouterTest(parameterized.TestCase):
  @parameterized.product(
    name=['v3', 'v3_no_groups', 'v2_lite', 'v2'], layer=[0, 1]
  )
  def test_choices_are_the_recorded_ones_but_for_near_ties(self, name, layer):
    fixture = recorded.read(name)
    self.assertLen(fixture.answers['choices'], 2)
    self.assertLen(fixture.answers['choices'][layer], 20_000)
    inputs_TD, differing = _differing(fixture, layer)
    self.assertLessEqual(len(differing), _MOST_TIES)
    experts = fixture.params['expert_layers']['experts']
    kernel_DE = np.float64(experts['router']['kernel'][layer])
    bias_E = np.float64(_bias(fixture, layer))
    scale = max(1, np.abs(bias_E).max())
    for t in differing:
      choice = oracle.choose(inputs_TD[t] @ kernel_DE, bias_E, fixture.config)
      self.assertLess(choice.margin / scale, _NEAR_TIE, f'token {t}')

  @parameterized.parameters('v3', 'v3_no_groups', 'v2_lite', 'v2')
  def test_recorded_choices_are_of_many_kinds(self, name):
    for choices_TA in recorded.read(name).answers['choices']:
      self.assertGreaterEqual(len(np.unique(choices_TA, axis=0)), 5)

  def test_recorded_choices_notice_zeros_outside_kept_groups(self):
    fixture, right = recorded.read('v3'), router.keep_best_groups

    def zeros(choice_TE, config):
      kept_TE = right(choice_TE, config)
      return jnp.where(jnp.isinf(kept_TE), 0.0, kept_TE)

    with mock.patch.object(router, 'keep_best_groups', zeros):
      _, differing = _differing(fixture, 0)
    self.assertGreater(len(differing), 10_000)


if __name__ == '__main__':
  absltest.main()
