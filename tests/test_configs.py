"""Every file in configs/ is a run: whole abstractly, and trained as :tiny."""

import dataclasses
import math
import pathlib
import runpy

from absl.testing import absltest, parameterized
import jax
import numpy as np
import pytest

from seekax.configuration.config import Config, from_config_dict
from seekax.configuration.model import model_differences
from seekax.data.pipeline import Batch
from seekax.model.parameters import abstract_weights
from seekax.planning.parameters import count_parameters
from seekax.training.schedules import Schedule
from seekax.training.state import abstract_state, init_state
from seekax.training.step import train_step

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))
QUICK = 'v3_671b'


def load(name: str, arg: str = '') -> Config:
  module = runpy.run_path(str(CONFIGS / f'{name}.py'))
  return from_config_dict(module['get_config'](arg))


def program(name: str) -> Config:
  """A `:tiny`, without the numbers that its step takes as arguments."""
  config = load(name, 'tiny')
  optim = dataclasses.replace(
    config.optim, final_learning_rate=0.0, last_learning_rate=0.0
  )
  train = dataclasses.replace(config.train, bias_update_rate=0.0)
  return dataclasses.replace(config, optim=optim, train=train)


# Large models differ in sizes, which `:tiny` makes equal: those that would
# train the same program are trained once.
OTHERS = {program(name): name for name in NAMES}
OTHERS.pop(program(QUICK))


def size(tree) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def random_batch(config: Config, seed: int) -> Batch:
  shape = (config.data.batch_size, config.data.sequence_length + 1)
  rows = np.random.default_rng(seed).integers(
    0, config.model.vocab_size, shape, dtype=np.int32
  )
  ones = np.ones_like(rows[:, 1:])
  positions = np.broadcast_to(
    np.arange(shape[1] - 1, dtype=np.int32), ones.shape
  )
  return Batch(rows[:, :-1], rows[:, 1:], positions, ones, ones)


class ConfigsTest(parameterized.TestCase):
  def test_there_is_a_config_for_every_preset(self):
    self.assertContainsSubset(
      {'v3_671b', 'v2', 'v2_lite', 'moonlight', 'kimi_k2', 'llama3_8b'}
      | {'llama3_70b', 'llama3_405b', 'llama3_tiny', 'tiny', 'demo'},
      set(NAMES),
    )

  @parameterized.parameters(*NAMES)
  def test_builds_abstractly_and_counts_as_planned(self, name):
    config = load(name)
    weights = abstract_weights(config.model)
    main = {k: v for k, v in weights.params.items() if 'mtp' not in k}
    counts = count_parameters(config.model)
    bias = weights.router_bias
    self.assertEqual(size(main) + size(bias.get('layers', [])), counts.total)
    total = size(weights.params) + size(bias)
    self.assertEqual(total, counts.total + config.model.mtp_depth * counts.mtp)
    state = abstract_state(config)
    # Two moments a parameter, and counters.
    self.assertGreaterEqual(size(state.opt_state), 2 * size(weights.params))

  def test_tiny_stages_go_on_from_each_other(self):
    """A sixteenth of the paper's lengths, and nothing else changes."""
    names = 'v3_671b', 'v3_extend_32k', 'v3_extend_128k'
    whole, tiny = [[load(x, arg).model for x in names] for arg in ('', 'tiny')]
    for large, small in zip(whole, tiny, strict=True):
      self.assertEqual(large.context_length, 16 * small.context_length)
    for stage in tiny[1:]:
      self.assertEqual(stage.rope_original_length, tiny[0].context_length)
      self.assertEmpty(model_differences(tiny[0], stage, extended=True))

  @parameterized.parameters((QUICK,))
  def test_tiny_trains_for_two_steps(self, name):
    self._train(name)

  # The mark stands below: above, the tests made of it would lose it.
  @parameterized.parameters(*OTHERS.values())
  @pytest.mark.slow
  def test_every_other_tiny_trains_for_two_steps(self, name):
    self._train(name)

  def _train(self, name):
    config = load(name, 'tiny')
    state = init_state(config)
    before = jax.tree.map(np.asarray, state.params)
    losses = []
    for step in range(2):
      batch, rates = random_batch(config, step), Schedule(config).rates(step)
      state, metrics = train_step(config, state, [batch], rates)
      losses.append(float(metrics.loss))
    uniform = math.log(config.model.vocab_size)
    np.testing.assert_allclose(losses, uniform, rtol=0.1)
    moved = jax.tree.map(
      lambda a, b: bool(np.any(a != np.asarray(b))), before, state.params
    )
    still = [
      jax.tree_util.keystr(path)
      for path, leaf in jax.tree_util.tree_leaves_with_path(moved)
      if not leaf
    ]
    self.assertEmpty(still)


if __name__ == '__main__':
  absltest.main()
