"""Laws of the table from logical axes to mesh axes."""

from absl.testing import absltest, parameterized
import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from reference import cases
from seekax.configuration.mesh import MESH_AXES
from seekax.model.parameters import abstract_weights, weight_axes
from seekax.parallel import mesh, rules

_ALL = dict.fromkeys(MESH_AXES, 2)


class SpecTest(parameterized.TestCase):
  def test_batch_is_split_over_the_ranks_of_data_and_experts(self):
    axes = ('data', 'fsdp', 'expert_node', 'expert')
    found = rules.spec(('batch', 'length', None), sizes=_ALL)
    self.assertEqual(found, P(axes, 'context', None))
    found = rules.spec(('batch', 'length'), sizes={'data': 4, 'fsdp': 1})
    self.assertEqual(found, P('data', None))

  def test_masters_are_split_further_than_weights(self):
    names, shape = ('experts', 'embed', 'mlp'), (8, 16, 4)
    weight = rules.spec(names, 'weight', _ALL)
    self.assertEqual(weight, P(('expert_node', 'expert'), 'fsdp', 'tensor'))
    master = rules.spec(names, 'master', _ALL, shape)
    # The experts' axis has taken its mesh axes already.
    self.assertEqual(
      master,
      P(('expert_node', 'expert'), ('fsdp', 'data', 'pipeline'), 'tensor'),
    )

  def test_gradients_are_added_up_where_they_are_found(self):
    names, shape = ('experts', 'embed', 'mlp'), (8, 16, 4)
    self.assertEqual(
      rules.spec(names, 'gradient', _ALL, shape),
      rules.spec(names, 'weight', _ALL),
    )
    # A latent's weight is whole, its gradient scattered over `fsdp`.
    self.assertEqual(rules.spec(('latent',), 'weight', _ALL), P(None))
    self.assertEqual(rules.spec(('latent',), 'gradient', _ALL, (8,)), P('fsdp'))

  def test_a_master_takes_what_divides_it(self):
    sizes = {'data': 3, 'fsdp': 4}
    self.assertEqual(rules.spec(('embed',), 'master', sizes, (8,)), P('fsdp'))
    self.assertEqual(rules.spec(('embed',), 'master', sizes, (6,)), P('data'))
    self.assertEqual(rules.spec(('embed',), 'master', sizes, (7,)), P(None))

  def test_masters_lie_over_the_pipeline_within_other_axes_and_never_by_layers(
    self,
  ):
    names, sizes = ('layers', 'embed', 'mlp'), {'pipeline': 4, 'data': 2}
    for layers in (6, 8):
      split = rules.spec(names, 'master', sizes, (layers, 16, 4))
      self.assertEqual(split, P(None, ('data', 'pipeline'), None))
    of_stage = rules.spec(('stages', None, 'embed', 'mlp'), 'weight', sizes)
    self.assertEqual(of_stage, P('pipeline', None, None, None))

  def test_vocabulary_tables_lie_over_the_pipeline(self):
    table = rules.spec(('vocab', 'embed'), 'weight', {'pipeline': 4})
    self.assertEqual(table, P('pipeline', None))

  def test_an_activation_that_is_not_divided_is_whole(self):
    sizes = {'data': 2, 'fsdp': 2}
    self.assertEqual(
      rules.spec(('batch', None), sizes=sizes, shape=(6, 1)), P(None, None)
    )

  def test_one_mesh_axis_cannot_split_two_axes(self):
    with self.assertRaisesRegex(ValueError, 'twice'):
      rules.spec(('batch', 'embed', 'batch'), sizes=_ALL)

  def test_unknown_name_is_refused(self):
    with self.assertRaises(KeyError):
      rules.spec(('batsch',), sizes=_ALL)

  @parameterized.parameters(*cases.MODELS)
  def test_every_axis_of_every_parameter_is_in_the_table(self, name):
    config = cases.MODELS[name]
    names = jax.tree.leaves(weight_axes(config))
    shapes = jax.tree.leaves(abstract_weights(config))
    self.assertLen(names, len(shapes))
    for leaf, own in zip(shapes, names, strict=True):
      self.assertLen(own.names, leaf.ndim)
      for role in ('weight', 'master'):
        rules.spec(own.names, role, _ALL, leaf.shape)


class ConstrainTest(absltest.TestCase):
  def test_one_device_is_left_alone(self):
    x = np.ones((2, 3), np.float32)
    self.assertIs(rules.constrain(x, 'batch', 'embed'), x)
    with jax.set_mesh(mesh.make_mesh('data:1')):
      self.assertIs(rules.constrain(x, 'batch', 'embed'), x)
      self.assertIs(rules.total(x, 'batch'), x)

  def test_sharding_names_the_mesh(self):
    made = mesh.make_mesh('data:1')
    self.assertIs(rules.sharding(made, ('batch', None)).mesh, made)


if __name__ == '__main__':
  absltest.main()
