"""Laws of the training step."""

import dataclasses
import inspect
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from reference import cases
from reference import training as oracle
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig
from seekax.data.pipeline import micro_batches
from seekax.training import balance, step
from seekax.training.guard import init_guard
from seekax.training.optimizer import make_optimizer
from seekax.training.schedules import Schedule
from seekax.training.state import TrainState

# One expert layer and one MTP module on plain attention: quick to compile.
_MODEL = dataclasses.replace(
  cases.V3_ONE_MTP,
  num_layers=1,
  num_dense_layers=0,
  attention='mqa',
  num_shared_experts=0,
  rope_scaling='none',
)
_CONFIG = Config(
  model=_MODEL,
  data=DataConfig(
    sequence_length=cases.LENGTH, batch_size=8, isolate_documents=True
  ),
  optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
  train=TrainConfig(
    steps=10,
    precision='float32',
    balance_weight=0.05,
    bias_update_rate=0.01,
    micro_batches=4,
  ),
)


# The step's own functions, compiled for the tests.
_plain = inspect.unwrap(step.accumulate)
_add = cases.jit(_plain, static_argnums=0)
_apply = cases.jit(inspect.unwrap(step.apply), static_argnums=0)


def _accumulate(config, state, batch, rates, so_far=None, weights=None):
  """Starts from zeros instead of None, which would be compiled apart."""
  so_far = so_far or step.nothing(config)
  return _add(config, state, batch, rates, so_far, weights)


def _state() -> TrainState:
  params, bias = cases.weights(_MODEL, 1)
  return TrainState(
    step=np.int32(0),
    params=params,
    router_bias=bias,
    opt_state=make_optimizer(_CONFIG.optim).init(params),
    guard=init_guard(_CONFIG.train),
  )


class StepTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.batch = cases.batch(_MODEL, True, batch_size=8)
    state, parts_so_far = _state(), None
    rates = Schedule(_CONFIG).rates(0)
    parts = micro_batches(cls.batch, 4)
    cls.before = jax.device_get(state)
    whole = _accumulate(_CONFIG, state, cls.batch, rates)
    cls.whole = jax.device_get(whole)
    for micro in parts:
      parts_so_far = _accumulate(_CONFIG, state, micro, rates, parts_so_far)
    cls.parts = jax.device_get(parts_so_far)
    with (
      mock.patch.object(step, 'accumulate', _accumulate),
      mock.patch.object(step, 'apply', _apply),
    ):
      cls.after, cls.metrics = jax.device_get(
        step.train_step(_CONFIG, state, parts, rates)
      )

  def test_four_micro_batches_equal_one_batch(self):
    pairs = zip(
      jax.tree_util.tree_leaves_with_path(self.parts.gradients),
      jax.tree.leaves(self.whole.gradients),
      strict=True,
    )
    for (path, part), whole in pairs:
      distance = np.linalg.norm(part - whole) / np.linalg.norm(whole)
      self.assertLess(distance, 1e-5, jax.tree_util.keystr(path))
    for key, load in self.whole.sums.load.items():
      self.assertEqual(load.dtype, np.int32)
      np.testing.assert_array_equal(self.parts.sums.load[key], load)
    for name in ('main', 'mtp', 'balance', 'tokens', 'sequences'):
      difference = cases.difference(
        getattr(self.parts.sums, name), getattr(self.whole.sums, name)
      )
      self.assertLess(difference, 1e-6, name)

  def test_it_is_the_step_of_one_device(self):
    """Which is read first, and knows neither parts nor meshes."""
    one = cases.jit(step.one_device_step, static_argnums=0)
    rates = Schedule(_CONFIG).rates(0)
    state, metrics = one(_CONFIG, self.before, self.batch, rates)
    for (path, ours), plain in zip(
      jax.tree_util.tree_leaves_with_path((self.after, self.metrics)),
      jax.tree.leaves((state, metrics)),
      strict=True,
    ):
      name = jax.tree_util.keystr(path)
      self.assertLess(cases.difference(ours, plain), 1e-5, name)

  def test_parts_hold_unequal_numbers_of_targets(self):
    """Else a mean of means would pass the law above."""
    same = self.batch.segments_BL == self.batch.target_segments_BL
    counts = [same[part::4].sum() for part in range(4)]
    self.assertGreater(len(set(counts)), 1)

  def test_update_is_adamw_on_the_mean_gradient(self):
    named = {
      jax.tree_util.keystr(path): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(self.before.params)
    }
    expected = oracle.AdamW(named, _CONFIG.optim)
    tokens = float(self.parts.sums.tokens)
    gradients = {
      jax.tree_util.keystr(path): np.asarray(leaf, np.float64) / tokens
      for path, leaf in jax.tree_util.tree_leaves_with_path(
        self.parts.gradients
      )
    }
    decayed = {name for name in named if "'scale'" not in name}
    norm = expected.step(gradients, decayed, oracle.learning_rate(0, _CONFIG))
    self.assertAlmostEqual(self.metrics.gradient_norm / norm, 1, delta=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.after.params):
      name = jax.tree_util.keystr(path)
      self.assertLess(cases.difference(leaf, expected.params[name]), 1e-5, name)

  def test_bias_moves_by_the_whole_batch_and_by_nothing_else(self):
    for key, bias in self.before.router_bias.items():
      expected = oracle.moved_bias(bias, self.whole.sums.load[key], 0.01)
      np.testing.assert_allclose(
        self.after.router_bias[key], expected, atol=1e-7
      )
      self.assertEqual(self.after.router_bias[key].dtype, np.float32)

  def test_metrics_are_per_token(self):
    sums, metrics = self.whole.sums, self.metrics
    self.assertAlmostEqual(metrics.loss, sums.main / sums.tokens, delta=1e-5)
    self.assertAlmostEqual(
      metrics.mtp_loss, sums.mtp[0] / sums.tokens, delta=1e-5
    )
    # 8 sequences, 2 routers.
    self.assertAlmostEqual(metrics.balance_loss, sums.balance / 16, delta=1e-5)
    self.assertAlmostEqual(metrics.learning_rate, 5e-3, delta=1e-8)
    for key, load in sums.load.items():
      np.testing.assert_array_equal(metrics.load[key], load)
      np.testing.assert_allclose(
        metrics.max_violation[key], balance.max_violation(load), rtol=1e-6
      )

  def test_rates_are_what_the_step_is_told(self):
    rates = Schedule(_CONFIG).rates(0)
    told = dataclasses.replace(
      rates, learning_rate=np.float32(0), bias_update_rate=np.float32(0)
    )
    still, metrics = _apply(_CONFIG, _state(), self.whole, told)
    before = (self.before.params, self.before.router_bias)
    for a, b in zip(
      jax.tree.leaves((still.params, still.router_bias)),
      jax.tree.leaves(before),
      strict=True,
    ):
      np.testing.assert_array_equal(a, b)
    self.assertEqual(float(metrics.learning_rate), 0)

  def test_a_gradient_without_a_number_changes_nothing(self):
    rates = Schedule(_CONFIG).rates(0)
    for poison in (np.nan, np.inf):
      broken = jax.tree.map(np.copy, self.whole)
      jax.tree.leaves(broken.gradients)[3].flat[0] = poison
      after, metrics = _apply(_CONFIG, _state(), broken, rates)
      self.assertFalse(bool(metrics.taken))
      self.assertEqual(int(metrics.nonfinite_in_a_row), 1)
      self.assertEqual(int(after.step), 1)  # The data has moved on.
      for name in ('params', 'router_bias', 'opt_state'):
        for a, b in zip(
          jax.tree.leaves(getattr(after, name)),
          jax.tree.leaves(getattr(self.before, name)),
          strict=True,
        ):
          np.testing.assert_array_equal(a, b)
    self.assertTrue(bool(self.metrics.taken))

  def test_step_counts_and_state_keeps_its_form(self):
    self.assertEqual(int(self.after.step), 1)

    def form(state):
      return jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), state)

    self.assertEqual(form(self.after), form(self.before))


class DonationTest(absltest.TestCase):
  def test_state_and_sums_are_donated(self):
    """A step needs no room for a second state or a second gradient."""
    batch = cases.batch(_MODEL, True)
    state = jax.eval_shape(_state)
    rates = Schedule(_CONFIG).rates(0)
    so_far = step.nothing.lower(_CONFIG).out_info
    (_, batch_info, _, sums_info), _ = step.accumulate.lower(
      _CONFIG, state, batch, rates, so_far
    ).args_info
    self.assertTrue(all(x.donated for x in jax.tree.leaves(sums_info)))
    self.assertFalse(any(x.donated for x in jax.tree.leaves(batch_info)))
    (state_info, _, _), _ = step.apply.lower(
      _CONFIG, state, so_far, rates
    ).args_info
    self.assertTrue(all(x.donated for x in jax.tree.leaves(state_info)))


if __name__ == '__main__':
  absltest.main()
