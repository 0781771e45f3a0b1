"""The MTP module against transformers' MtpModel, recorded.

The wrong ways are the two that others took: hidden state first where the
released weights have the embedding first, and the hidden state before the main
model's final norm.
"""

from absl.testing import absltest
import jax
import numpy as np

from model import test_against_transformers as recorded
from reference import cases
from seekax.inference import scoring
from seekax.model.parameters import abstract_weights
from seekax.model.transformer import shift_left, Transformer
from seekax.model.weights import Weights

_NAME = 'v3_mtp'
_all_logits = cases.jit(scoring.all_logits, static_argnums=0)


def _error(fixture, mtp_logits) -> float:
  """The last position has no next token."""
  return cases.difference(mtp_logits[:, :-1], fixture.answers['mtp_logits'])


class MtpTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.fixture = recorded.read(_NAME)

  def _logits(self, params):
    config, tokens = self.fixture.config, self.fixture.answers['tokens']
    weights = Weights(params, self.fixture.router_bias)
    return _all_logits(Transformer(config), weights, tokens)

  def test_logits_are_the_recorded_ones(self):
    ours = {
      'params': self.fixture.params,
      'router_bias': self.fixture.router_bias,
    }
    self.assertEqual(
      jax.tree.map(np.shape, ours),
      jax.tree.map(np.shape, abstract_weights(self.fixture.config).tree),
    )
    main_BLV, mtp_JBLV = self._logits(self.fixture.params)
    expected = self.fixture.answers['logits']
    self.assertLess(cases.difference(main_BLV, expected), 1e-5)
    self.assertLen(mtp_JBLV, 1)
    self.assertLess(_error(self.fixture, mtp_JBLV[0]), 1e-5)
    self.assertTrue(np.isnan(mtp_JBLV[0, :, -1]).all())

  def test_recorded_logits_notice_the_hidden_state_first(self):
    module = dict(self.fixture.params['mtp_0'])
    # Halves exchanged: as if the other order had been concatenated.
    module['project'] = np.roll(
      module['project'], len(module['project']) // 2, axis=0
    )
    _, mtp_JBLV = self._logits({**self.fixture.params, 'mtp_0': module})
    self.assertGreater(_error(self.fixture, mtp_JBLV[0]), 1e-2)

  def test_recorded_logits_notice_hidden_states_before_the_norm(self):
    fixture = self.fixture
    tokens_BL = fixture.answers['tokens']
    positions_BL = np.broadcast_to(
      np.arange(tokens_BL.shape[1]), tokens_BL.shape
    )
    model, variables = Transformer(fixture.config), {'params': fixture.params}

    def compute(final_gain_D):
      # The module's own norm undoes all of the final norm but its gain.
      trunk = {**fixture.params, 'final_norm': {'scale': final_gain_D}}
      hidden_BLD = model.apply(
        {'params': trunk}, tokens_BL, positions_BL, None, fixture.router_bias
      ).hidden_BLD
      (further_BLD,), _ = model.apply(
        variables,
        hidden_BLD,
        shift_left(tokens_BL, 1),
        positions_BL,
        None,
        fixture.router_bias,
        method='predict_further',
      )
      return model.apply(variables, further_BLD, method='logits')

    gain_D = fixture.params['final_norm']['scale']
    compute = cases.jit(compute)
    self.assertLess(_error(fixture, compute(gain_D)), 1e-5)
    self.assertGreater(_error(fixture, compute(np.ones_like(gain_D))), 1e-2)


if __name__ == '__main__':
  absltest.main()
