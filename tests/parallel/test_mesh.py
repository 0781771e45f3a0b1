"""Laws of mesh descriptions."""

from absl.testing import absltest, parameterized
import jax
from jax.sharding import AxisType

from seekax.config import ConfigError
from seekax.parallel import mesh


class MeshTest(parameterized.TestCase):
  def test_description_is_read(self):
    self.assertEqual(mesh.parse_mesh('data:4'), {'data': 4})

  @parameterized.parameters(
    ('dat:4', "unknown axis 'dat'.*did you mean 'data'"),
    ('', 'unknown axis'),
    ('data:2,', 'unknown axis'),
    ('data', 'name:size'),
    ('data:', 'name:size'),
    ('data:0', 'name:size'),
    ('data:-1', 'name:size'),
    ('data:two', 'name:size'),
    ('data:2,data:2', 'each axis once'),
  )
  def test_wrong_description_is_explained(self, description, message):
    with self.assertRaisesRegex(ConfigError, message):
      mesh.parse_mesh(description)

  def test_too_many_devices_are_refused(self):
    have = len(jax.devices())
    with self.assertRaisesRegex(ConfigError, f'has {have}'):
      mesh.make_mesh(f'data:{have + 1}')

  def test_axes_are_auto(self):
    made = mesh.make_mesh('data:1')
    self.assertEqual(dict(made.shape), {'data': 1})
    self.assertEqual(made.axis_types, (AxisType.Auto,))


if __name__ == '__main__':
  absltest.main()
