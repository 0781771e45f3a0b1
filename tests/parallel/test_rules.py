"""Laws of the table from logical axes to mesh axes."""

from absl.testing import absltest
from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from reference import cases
from seekax.model.transformer import Transformer
from seekax.parallel import mesh, rules


class SpecTest(absltest.TestCase):
  def test_batch_is_split_over_data(self):
    self.assertEqual(
      rules.spec(('batch', 'length', None)), PartitionSpec('data', None, None)
    )

  def test_one_mesh_axis_cannot_split_two_axes(self):
    with self.assertRaisesRegex(ValueError, 'twice'):
      rules.spec(('batch', 'embed', 'batch'))

  def test_unknown_name_is_refused(self):
    with self.assertRaises(KeyError):
      rules.spec(('batsch',))

  def test_every_axis_of_every_parameter_is_in_the_table(self):
    for config in cases.MODELS.values():
      tokens = jnp.zeros((1, 2), jnp.int32)
      boxed = jax.eval_shape(
        lambda c=config, t=tokens: Transformer(c).init(
          jax.random.key(0), t, method='initialise'
        )
      )
      specs = nn.get_partition_spec(boxed)
      shapes = jax.tree.leaves(nn.meta.unbox(boxed))
      names = jax.tree.leaves(
        specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
      )
      self.assertLen(names, len(shapes))
      for leaf, axes in zip(shapes, names, strict=True):
        self.assertLen(axes, leaf.ndim)
        rules.spec(tuple(axes))


class ConstrainTest(absltest.TestCase):
  def test_one_device_is_left_alone(self):
    x = np.ones((2, 3), np.float32)
    self.assertIs(rules.constrain(x, 'batch', 'embed'), x)
    with jax.set_mesh(mesh.make_mesh('data:1')):
      self.assertIs(rules.constrain(x, 'batch', 'embed'), x)

  def test_sharding_names_the_mesh(self):
    made = mesh.make_mesh('data:1')
    sharding = rules.sharding(made, ('batch', None))
    self.assertEqual(sharding.spec, PartitionSpec('data', None))
    self.assertIs(sharding.mesh, made)


if __name__ == '__main__':
  absltest.main()
