"""Laws of AdamW, clipping and the decay mask."""

import dataclasses

from absl.testing import absltest, parameterized
import jax
import numpy as np

from reference import cases
from reference import training as oracle
from seekax.config import OptimConfig
from seekax.model.parameters import abstract_weights
from seekax.training.optimizer import decays, make_optimizer, mean_and_clip

# An epsilon large enough to show where it stands.
_OPTIM = OptimConfig(eps=1e-3)

# Stacked leaves, as the model has them.
_SHAPES = {'matrix': (2, 3, 4), 'router': (2, 3, 5), 'scale': (2, 3)}


def _trees(seed, size):
  rng = np.random.default_rng(seed)
  return {
    name: (size * rng.standard_normal(shape)).astype(np.float32)
    for name, shape in _SHAPES.items()
  }


class AdamWTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('clipped', (1.0, 3.0, 0.7)),
    ('unclipped', (0.05, 0.02, 0.1)),
    ('now_and_then', (0.05, 3.0, 0.1)),
  )
  def test_three_steps_match_oracle(self, sizes):
    params = _trees(0, 1.0)
    expected = oracle.AdamW(params, _OPTIM)
    rates = (0.005, 0.01, 0.007)
    optimizer = make_optimizer(_OPTIM)

    @cases.jit
    def step(params, state, gradients, rate):
      sums = jax.tree.map(lambda g: 7 * g, gradients)
      mean, norm = mean_and_clip(sums, 7, _OPTIM.clip_norm)
      directions, state = optimizer.update(mean, state, params)
      params = jax.tree.map(lambda x, d: x - rate * d, params, directions)
      return params, state, norm

    state, norms = optimizer.init(params), []
    for number, size in enumerate(sizes):
      gradients = _trees(1 + number, size)
      params, state, norm = step(params, state, gradients, rates[number])
      norms.append(
        expected.step(
          {k: g.astype(np.float64) for k, g in gradients.items()},
          {'matrix', 'router'},
          rates[number],
        )
      )
      self.assertAlmostEqual(float(norm) / norms[-1], 1, delta=1e-6)
      for name, value in params.items():
        self.assertLess(
          cases.difference(value, expected.params[name]), 1e-6, name
        )
    clipped = [norm > _OPTIM.clip_norm for norm in norms]
    self.assertEqual(clipped, [size > 0.5 for size in sizes])

  def test_decay_pulls_matrices_and_leaves_norms(self):
    params = _trees(0, 1.0)
    optimizer = make_optimizer(_OPTIM)
    nothing = jax.tree.map(np.zeros_like, params)
    updates, _ = cases.jit(optimizer.update)(
      nothing, optimizer.init(params), params
    )
    np.testing.assert_array_equal(updates['scale'], 0)
    for name in ('matrix', 'router'):
      np.testing.assert_allclose(updates[name], 0.1 * params[name], rtol=1e-5)


class MaskTest(absltest.TestCase):
  def test_only_norms_are_spared(self):
    for config in (cases.V3, cases.LLAMA):
      params = abstract_weights(config)['params']
      mask = decays(params)
      spared = set()
      for path, decayed in jax.tree_util.tree_leaves_with_path(mask):
        if not decayed:
          spared.add(
            jax.tree_util.keystr(path[-2:], simple=True, separator='/')
          )
      norms = {'attention_norm', 'ffn_norm', 'final_norm'}
      if config.attention == 'mla':
        norms |= {'kv_norm', 'query_norm', 'embed_norm', 'hidden_norm'}
      self.assertEqual(spared, {f'{norm}/scale' for norm in norms})

  def test_weight_decay_zero_moves_nothing(self):
    params = _trees(0, 1.0)
    optim = dataclasses.replace(_OPTIM, weight_decay=0.0)
    optimizer = make_optimizer(optim)
    nothing = jax.tree.map(np.zeros_like, params)
    updates, _ = cases.jit(optimizer.update)(
      nothing, optimizer.init(params), params
    )
    for update in updates.values():
      np.testing.assert_array_equal(update, 0)


if __name__ == '__main__':
  absltest.main()
