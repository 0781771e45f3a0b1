"""Laws of AdamW, clipping and the decay mask."""

import dataclasses

from absl.testing import absltest, parameterized
import jax
import numpy as np

from reference import cases
from reference import training as oracle
from seekax.configuration.optim import OptimConfig
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


class MomentsTest(parameterized.TestCase):
  @parameterized.parameters('adamw', 'muon')
  def test_moments_are_kept_in_their_dtype(self, name):
    params = abstract_weights(cases.V3).params
    for dtype in ('float32', 'bfloat16'):
      optim = OptimConfig(name=name, moment_dtype=dtype)
      state = jax.eval_shape(make_optimizer(optim).init, params)
      kept = {x.dtype.name for x in jax.tree.leaves(state) if x.size > 20}
      self.assertEqual(kept, {dtype})

  def test_bfloat16_moments_change_the_update_little(self):
    params, directions = _trees(0, 1.0), []
    for dtype in ('float32', 'bfloat16'):
      optimizer = make_optimizer(
        dataclasses.replace(_OPTIM, moment_dtype=dtype)
      )
      state, update = optimizer.init(params), cases.jit(optimizer.update)
      for seed in range(4):
        direction, state = update(_trees(seed, 0.1), state, params)
      directions.append(direction)
    for name in _SHAPES:
      distance = cases.difference(directions[1][name], directions[0][name])
      self.assertBetween(distance, 1e-6, 2**-7)


class MuonTest(absltest.TestCase):
  def test_every_matrix_is_made_orthogonal_by_itself(self):
    optim = OptimConfig(name='muon', weight_decay=0.0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: rng.standard_normal(x.shape).astype(np.float32),
      abstract_weights(cases.V3).params,
    )
    optimizer = make_optimizer(optim)
    directions, _ = cases.jit(optimizer.update)(
      params, optimizer.init(params), params
    )

    def matrices(tree, stack, name):
      """[matrices, rows, columns], as the model multiplies by them."""
      module = tree[stack].get('attention', {})
      if name in ('query_up', 'kv_up', 'kv_down'):
        layers = module[name]
        return layers.reshape(*layers.shape[:2], -1)
      if name == 'out':
        layers = module[name]
        return layers.reshape(layers.shape[0], -1, layers.shape[-1])
      layers = tree[stack]['experts'][name]
      return layers.reshape(-1, *layers.shape[2:])

    for name in ('query_up', 'kv_up', 'kv_down', 'out', 'gate', 'down'):
      for direction, gradient in zip(
        matrices(directions, 'expert_layers', name),
        matrices(params, 'expert_layers', name),
        strict=True,
      ):
        rows, columns = direction.shape
        singular = np.linalg.svd(direction, compute_uv=False)
        unit = 0.2 * max(rows, columns) ** 0.5
        self.assertBetween(singular.min() / unit, 0.5, 1.3, name)
        self.assertBetween(singular.max() / unit, 0.5, 1.3, name)
        # In the gradient's own directions: U diag(s) V turns to about U V.
        left, _, right = np.linalg.svd(gradient, full_matrices=False)
        aligned = np.diag(left.T @ direction @ right.T) / unit
        self.assertGreater(aligned.min(), 0.5, name)

  def test_tables_norms_and_the_router_are_adams(self):
    params = abstract_weights(cases.V3).params
    state = jax.eval_shape(
      make_optimizer(OptimConfig(name='muon')).init, params
    )
    by_adam = set()
    for path, _ in jax.tree_util.tree_leaves_with_path(state):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      if '/nu/' in name:
        by_adam.add(name.split('/nu/')[1])
    names = {
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }
    expected = {
      name
      for name in names
      if name.endswith('/scale')
      or name in ('embedding/table', 'head')
      or '/router/' in name
    }
    self.assertEqual(by_adam, expected)


class MaskTest(absltest.TestCase):
  def test_only_norms_are_spared(self):
    for config in (cases.V3, cases.LLAMA):
      params = abstract_weights(config).params
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
