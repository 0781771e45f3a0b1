"""Gradients and AdamW against transformers in torch, recorded for `v3`."""

import dataclasses
import inspect
import runpy
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from model import test_against_transformers as recorded
from reference import cases
from seekax.model.weights import Weights
from seekax.training import step
from seekax.training.schedules import Schedule
from seekax.training.state import TrainState

_accumulate = cases.jit(inspect.unwrap(step.accumulate), static_argnums=0)
_apply = cases.jit(inspect.unwrap(step.apply), static_argnums=0)


# Shared with third_party, which compares the same with live answers.
_RECIPE = runpy.run_path(
  str(recorded.FIXTURES.parents[2] / 'third_party/transformers/recipe.py')
)
_batch_of = _RECIPE['batch_of']


class TrainingTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.fixture = recorded.read('v3')
    cls.config = _RECIPE['config_of'](
      cls.fixture.config,
      cls.fixture.about['training'],
      len(cls.fixture.answers['losses']),
    )

  def _state(self) -> TrainState:
    weights = Weights(self.fixture.params, self.fixture.router_bias)
    return _RECIPE['start'](self.config, weights)

  def _losses(self, config) -> tuple[list[float], list[float]]:
    """Loss and gradient norm before every update on the recorded batches."""
    state, losses, norms = self._state(), [], []
    with (
      mock.patch.object(step, 'accumulate', _accumulate),
      mock.patch.object(step, 'apply', _apply),
    ):
      for tokens_BL in self.fixture.answers['batches']:
        state, metrics = step.train_step(
          config, state, [_batch_of(tokens_BL)], Schedule(config).rates(0)
        )
        losses.append(float(metrics.loss))
        norms.append(float(metrics.gradient_norm))
    return losses, norms

  def test_gradients_are_the_recorded_ones(self):
    path = recorded.FIXTURES / 'v3_gradients.safetensors'
    tensors = load_file(path)
    expected = recorded.our_params(tensors, self.config.model)
    self.assertEmpty(tensors)
    batch = _batch_of(self.fixture.answers['tokens'])
    result = jax.device_get(
      _accumulate(
        self.config, self._state(), batch, Schedule(self.config).rates(0)
      )
    )
    pairs = zip(
      jax.tree_util.tree_leaves_with_path(result.gradients),
      jax.tree_util.tree_leaves_with_path(expected),
      strict=True,
    )
    for (path, actual), (expected_path, leaf) in pairs:
      self.assertEqual(path, expected_path)
      actual = actual / result.sums.tokens
      distance = np.linalg.norm(actual - leaf) / np.linalg.norm(leaf)
      self.assertLess(distance, 1e-4, jax.tree_util.keystr(path))

  @pytest.mark.slow
  def test_adamw_losses_are_the_recorded_ones(self):
    losses, norms = self._losses(self.config)
    answers = self.fixture.answers
    np.testing.assert_allclose(losses, answers['losses'], atol=1e-4)
    np.testing.assert_allclose(norms, answers['gradient_norms'], rtol=1e-3)
    self.assertLess(losses[-1], losses[0] - 0.1)
    self.assertGreater(min(norms), self.config.optim.clip_norm)

  def test_recorded_losses_notice_a_mistake(self):
    """Decay is the smallest part of 20 steps, and still shows."""
    optim = dataclasses.replace(self.config.optim, weight_decay=0.0)
    wrong, _ = self._losses(dataclasses.replace(self.config, optim=optim))
    distance = np.abs(np.array(wrong) - self.fixture.answers['losses'])
    self.assertGreater(distance.max(), 1e-3)


if __name__ == '__main__':
  absltest.main()
