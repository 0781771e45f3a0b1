"""Laws of the training loss."""

import dataclasses
import functools

from absl.testing import absltest, parameterized
import jax
import numpy as np
import pytest

from reference import cases
from reference import losses as oracle
from reference.transformer import to_float64
from seekax.configuration.compute import ComputeConfig
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.train import TrainConfig
from seekax.model.weights import Weights
from seekax.training.losses import loss_sums, main_weights, mtp_weights


def _config(model, isolate_documents=False, z_loss_weight=0.0) -> Config:
  return Config(
    model=model,
    data=DataConfig(
      sequence_length=cases.LENGTH,
      batch_size=8,
      isolate_documents=isolate_documents,
    ),
    # A balance weight large enough for a wrong loss to show.
    train=TrainConfig(
      precision='float32',
      mtp_weight=0.3,
      balance_weight=0.05,
      z_loss_weight=z_loss_weight,
    ),
  )


@functools.partial(cases.jit, static_argnums=0)
def _value(config, params, bias, batch):
  return loss_sums(Weights(params, bias), batch, config)


@functools.partial(cases.jit, static_argnums=0)
def _gradient(config, params, bias, batch):
  def objective(params):
    return loss_sums(Weights(params, bias), batch, config)

  return jax.grad(objective, has_aux=True)(params)


class OracleTest(parameterized.TestCase):
  @parameterized.parameters(
    (cases.V3, False, 0.0),
    (cases.V3, True, 0.02),
    (cases.V2, False, 0.0),
    (cases.V2, False, 0.02),
    (cases.LLAMA, True, 0.0),
  )
  def test_losses_match_oracle(self, model, isolate, z_loss_weight):
    config = _config(model, isolate, z_loss_weight)
    params, bias = cases.weights(model, 1)
    batch = cases.batch(model, isolate)
    objective, sums = _value(config, params, bias, batch)
    params, bias = to_float64((params, bias))
    expected = oracle.batch_losses(params, bias, batch, config)
    self.assertGreater(expected.margin, 1e-5, 'near-tie: take another seed')
    self.assertLess(cases.difference(sums.main, expected.main), 1e-5)
    self.assertLess(cases.difference(sums.mtp, expected.mtp_J), 1e-5)
    self.assertLess(cases.difference(sums.balance, expected.balance), 1e-5)
    expected_z = expected.z if z_loss_weight else 0.0
    self.assertLess(cases.difference(sums.squared_log_z, expected_z), 1e-5)
    self.assertEqual(float(sums.tokens), expected.tokens)
    self.assertEqual(int(sums.sequences), expected.sequences)
    self.assertEqual(sums.load.keys(), expected.load.keys())
    for key, load in expected.load.items():
      np.testing.assert_array_equal(sums.load[key], load)
    if not isolate:
      # Isolated documents have fewer targets than tokens, and the balance
      # loss weighs more by that factor.
      self.assertEqual(expected.tokens, batch.tokens_BL.size)
      self.assertLess(
        cases.difference(
          objective / sums.tokens, oracle.objective(expected, config)
        ),
        1e-5,
      )

  def test_gradient_is_the_slope_of_the_oracle(self):
    """Along a random direction in every leaf, by forward differences.

    Main and MTP losses with their z-losses, whose weight is large enough for
    a wrong gradient to show.
    """
    config = _config(cases.V3_ONE_MTP, z_loss_weight=0.02)
    params, bias = cases.weights(config.model, 1)
    batch = cases.batch(config.model)
    gradients, sums = _gradient(config, params, bias, batch)
    exact, exact_bias = to_float64((params, bias))
    leaves, tree = jax.tree.flatten(exact)
    paths = jax.tree_util.tree_leaves_with_path(gradients)
    rng = np.random.default_rng(0)

    def loss(index, leaf):
      moved = list(leaves)
      moved[index] = leaf
      moved = jax.tree.unflatten(tree, moved)
      losses = oracle.batch_losses(moved, exact_bias, batch, config)
      return losses.tokens * oracle.objective(losses, config)

    step = 1e-7  # too short to change a choice
    start = loss(0, leaves[0])
    for index, (path, gradient) in enumerate(paths):
      gradient = np.asarray(gradient, np.float64)
      direction = rng.standard_normal(gradient.shape)
      # Half along the gradient, so that the slope is no difference of parts.
      norm = np.linalg.norm(gradient)
      direction += gradient / norm * np.linalg.norm(direction)
      moved = loss(index, leaves[index] + step * direction)
      slope = (moved - start) / step
      along = np.sum(gradient * direction)
      name = jax.tree_util.keystr(path)
      self.assertAlmostEqual(along / slope, 1, delta=1e-4, msg=name)
    self.assertEqual(float(sums.tokens), batch.tokens_BL.size)


class SwitchesTest(parameterized.TestCase):
  @parameterized.parameters(
    (cases.V3_ONE_MTP, 'paper', 8),
  )
  def test_remat_and_unrolling_do_not_change_gradients(self, *switches):
    self._check(*switches)

  @parameterized.parameters(
    (cases.V3_ONE_MTP, 'none', 0),
    (cases.V3_ONE_MTP, 'paper', 0),
    (cases.V3_ONE_MTP, 'full', 0),
    (cases.V3_ONE_MTP, 'full', 8),
    (cases.LLAMA, 'paper', 0),
    (cases.LLAMA, 'paper', 8),
    (cases.LLAMA, 'full', 8),
  )
  @pytest.mark.slow
  def test_remat_and_unrolling_do_not_change_gradients_either(self, *switches):
    self._check(*switches)

  def _check(self, model, remat, unroll_layers):
    params, bias = cases.weights(model, 1)
    batch = cases.batch(model)
    plain, sums = _gradient(_config(model), params, bias, batch)
    other = dataclasses.replace(
      _config(model),
      compute=ComputeConfig(remat=remat, unroll_layers=unroll_layers),
    )
    other, other_sums = _gradient(other, params, bias, batch)
    self.assertLess(cases.difference(other_sums.main, sums.main), 1e-6)
    self.assertLess(cases.difference(other_sums.mtp, sums.mtp), 1e-6)
    pairs = zip(
      jax.tree_util.tree_leaves_with_path(other),
      jax.tree.leaves(plain),
      strict=True,
    )
    for (path, a), b in pairs:
      name = jax.tree_util.keystr(path)
      self.assertLess(cases.difference(a, b), 1e-5, name)


class WeightsTest(absltest.TestCase):
  """Which targets count, on rows written out by hand."""

  def _batch(self, segments):
    segments = np.array([segments], np.int32)
    tokens = np.zeros_like(segments)
    return cases.Batch(
      tokens_BL=tokens[:, :-1],
      targets_BL=tokens[:, 1:],
      positions_BL=tokens[:, :-1],
      segments_BL=segments[:, :-1],
      target_segments_BL=segments[:, 1:],
    )

  def test_main_targets(self):
    batch = self._batch([1, 1, 2, 2, 2, 3])
    np.testing.assert_array_equal(main_weights(batch, False), [[1] * 5])
    np.testing.assert_array_equal(main_weights(batch, True), [[1, 0, 1, 1, 0]])

  def test_mtp_targets_stop_at_document_and_row_ends(self):
    batch = self._batch([1, 1, 1, 2, 2, 2, 2])
    # Token i and token i + 2 in one document; the last target is token 6.
    np.testing.assert_array_equal(mtp_weights(batch, 1), [[1, 0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(mtp_weights(batch, 2), [[0, 0, 0, 1, 0, 0]])

  def test_mtp_targets_of_one_document(self):
    batch = self._batch([1] * 6)
    np.testing.assert_array_equal(mtp_weights(batch, 1), [[1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(mtp_weights(batch, 3), [[1, 1, 0, 0, 0]])


if __name__ == '__main__':
  absltest.main()
