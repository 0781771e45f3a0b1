"""Gradients and AdamW against transformers in torch, recorded for `v3`."""

import dataclasses
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
from reference import cases
from safetensors.numpy import load_file

from model import test_against_transformers as recorded
from seekax.config import Config, DataConfig, OptimConfig, TrainConfig
from seekax.data.pipeline import Batch
from seekax.training import step
from seekax.training.optimizer import make_optimizer
from seekax.training.state import TrainState

_accumulate = cases.jit(step.accumulate.__wrapped__, static_argnums=0)
_apply = cases.jit(step.apply.__wrapped__, static_argnums=0)


def _batch(tokens_BL: np.ndarray) -> Batch:
  """Next-token prediction within these tokens, each row one document."""
  inputs_BL = tokens_BL[:, :-1]
  ones_BL = np.ones_like(inputs_BL)
  return Batch(
    tokens_BL=inputs_BL,
    targets_BL=tokens_BL[:, 1:],
    positions_BL=np.cumsum(ones_BL, axis=1, dtype=np.int32) - 1,
    segments_BL=ones_BL,
    target_segments_BL=ones_BL,
  )


class TrainingTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.fixture = recorded.read('v3')
    made = cls.fixture.about['training']
    steps = len(cls.fixture.answers['losses'])
    cls.config = Config(
      model=cls.fixture.config,
      data=DataConfig(sequence_length=95, batch_size=2, num_shards=1),
      optim=OptimConfig(
        learning_rate=made['learning_rate'],
        warmup_steps=0,
        constant_steps=steps,
        beta1=made['betas'][0],
        beta2=made['betas'][1],
        eps=made['eps'],
        weight_decay=made['weight_decay'],
        clip_norm=made['clip_norm'],
      ),
      train=TrainConfig(
        steps=steps,
        precision='float32',
        balance_weight=0.0,
        bias_update_rate=0.0,
        mtp_weight=0.0,
      ),
    )

  def _state(self) -> TrainState:
    return TrainState(
      step=np.int32(0),
      params=self.fixture.params,
      router_bias=self.fixture.router_bias,
      opt_state=make_optimizer(self.config).init(self.fixture.params),
    )

  def _losses(self, config) -> tuple[list[float], list[float]]:
    """Loss and gradient norm before every update on the recorded batches."""
    state, losses, norms = self._state(), [], []
    with (
      mock.patch.object(step, 'accumulate', _accumulate),
      mock.patch.object(step, 'apply', _apply),
    ):
      for tokens_BL in self.fixture.answers['batches']:
        state, metrics = step.train_step(config, state, _batch(tokens_BL))
        losses.append(float(metrics.loss))
        norms.append(float(metrics.gradient_norm))
    return losses, norms

  def test_gradients_are_the_recorded_ones(self):
    path = recorded.FIXTURES / 'v3_gradients.safetensors'
    tensors = load_file(path)
    expected = recorded.our_params(tensors, self.config.model)
    self.assertEmpty(tensors)
    batch = _batch(self.fixture.answers['tokens'])
    result = jax.device_get(_accumulate(self.config, self._state(), batch))
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
