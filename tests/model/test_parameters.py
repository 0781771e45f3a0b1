"""Laws of the tree of parameters: counts, paths, initial values, dtypes."""

import math

from absl.testing import absltest, parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases
from seekax.configuration import presets
from seekax.configuration.compute import ComputeConfig
from seekax.configuration.presets import PRESETS
from seekax.model import parameters
from seekax.model.transformer import Transformer
from seekax.parallel import mesh
from seekax.planning.parameters import count_parameters


def _size(tree) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _shapes(tree) -> dict[str, tuple]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path): (leaf.shape, leaf.dtype)
    for path, leaf in leaves
  }


def _main_and_mtp(config) -> tuple[int, int]:
  """Parameters with router bias, of the main model and of the MTP modules."""
  weights = parameters.abstract_weights(config)
  params, bias = weights.params, weights.router_bias
  mtp = _size({k: v for k, v in params.items() if k.startswith('mtp')})
  mtp += _size(bias.get('mtp', ()))
  return _size(weights) - mtp, mtp


class OnMeshTest(absltest.TestCase):
  def test_shapes_are_whole_within_ranks_that_have_their_own_experts(self):
    right = _shapes(parameters.abstract_weights(cases.V3))
    token = mesh.APART.set(frozenset({'expert'}))
    try:
      parameters._boxed_shapes.cache_clear()
      sizes = jax.sharding.AbstractMesh((2,), ('expert',))
      with jax.sharding.use_abstract_mesh(sizes):
        self.assertEqual(_shapes(parameters.abstract_weights(cases.V3)), right)
        self.assertEqual(mesh.current_sizes(), {'expert': 2})
        self.assertEmpty(mesh.shared_sizes())
    finally:
      mesh.APART.reset(token)


class CountTest(parameterized.TestCase):
  @parameterized.parameters(*PRESETS)
  def test_shapes_add_up_to_the_closed_form(self, name):
    config = PRESETS[name]()
    counts = count_parameters(config)
    self.assertEqual(_main_and_mtp(config), (counts.total, counts.mtp))

  def test_v3_has_the_published_size(self):
    self.assertEqual(
      _main_and_mtp(presets.v3_671b()), (671_026_419_200, 11_610_068_224)
    )


class TreeTest(parameterized.TestCase):
  @parameterized.parameters(
    {'unroll_layers': 0},
    {'remat': 'paper'},
    {'remat': 'paper', 'unroll_layers': 0},
    {'remat': 'full'},
    {'remat': 'full', 'unroll_layers': 0},
    {'grouped_matmul': 'dense'},
    {'grouped_matmul': 'ragged'},
  )
  def test_how_it_is_computed_does_not_move_parameters(self, **switches):
    model = Transformer(cases.V3, compute=ComputeConfig(**switches))
    shapes = jax.eval_shape(
      lambda: model.init(
        jax.random.key(0), jnp.zeros((1, 2), jnp.int32), method='initialise'
      )
    )
    self.assertEqual(
      _shapes(nn.meta.unbox(shapes['params'])),
      _shapes(parameters.abstract_weights(cases.V3).params),
    )

  def test_masters_and_bias_are_float32(self):
    for leaf in jax.tree.leaves(parameters.abstract_weights(cases.V3)):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_softmax_router_and_dense_model_have_no_bias(self):
    for config in (cases.V2, cases.LLAMA):
      self.assertEqual(parameters.abstract_weights(config).router_bias, {})

  def test_cast_leaves_router_and_norms_in_float32(self):
    params = parameters.abstract_weights(cases.V3).params
    cast = jax.eval_shape(
      lambda p: parameters.cast_params(p, jnp.bfloat16), params
    )
    kept = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(cast):
      if leaf.dtype == jnp.float32:
        kept.add(path[-1].key)
      else:
        self.assertEqual(leaf.dtype, jnp.bfloat16)
        self.assertNotEqual(path[-1].key, 'scale')
    self.assertEqual(kept, {'scale', 'kernel', 'table'})


class InitTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    init = cases.jit(lambda seed: parameters.init_params(cases.MOONLIGHT, seed))
    cls.params, cls.same, cls.other = init(0), init(0), init(1)

  def test_norms_are_one_and_matrices_have_the_published_spread(self):
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
      name = jax.tree_util.keystr(path)
      if path[-1].key == 'scale':
        np.testing.assert_array_equal(leaf, 1, name)
      else:
        # Within 5 standard errors of the spread.
        error = 5 / math.sqrt(2 * leaf.size)
        self.assertLess(abs(float(leaf.std()) / 0.006 - 1), error, name)

  def test_stacked_layers_and_matrices_differ(self):
    gate = self.params['expert_layers']['experts']['gate']
    self.assertGreater(float(np.abs(gate[0] - gate[1]).min()), 0)
    self.assertGreater(float(np.abs(gate[:, 0] - gate[:, 1]).min()), 0)
    up = self.params['expert_layers']['experts']['up']
    self.assertGreater(float(np.abs(gate - up).max()), 1e-3)

  def test_seed_decides(self):
    np.testing.assert_array_equal(self.same['head'], self.params['head'])
    self.assertGreater(
      float(np.abs(self.other['head'] - self.params['head']).max()), 1e-3
    )

  def test_router_bias_starts_at_zero(self):
    bias = parameters.init_router_bias(cases.V3)
    self.assertEqual(bias['layers'].shape, (2, 8))
    self.assertEqual(bias['mtp'].shape, (2, 8))
    for leaf in bias.values():
      self.assertEqual(leaf.dtype, jnp.float32)
      self.assertFalse(leaf.any())


if __name__ == '__main__':
  absltest.main()
