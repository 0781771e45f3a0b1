"""Laws of mesh descriptions."""

import dataclasses
from unittest import mock

from absl.testing import absltest, parameterized
import jax
from jax.sharding import AxisType

from seekax.configuration import presets
from seekax.configuration.compute import ComputeConfig
from seekax.configuration.config import Config, from_config_dict
from seekax.configuration.errors import ConfigError
from seekax.configuration.fit_on_mesh import check_mesh
from seekax.configuration.mesh import (
  MESH_AXES,
  mesh_sizes,
  ParallelConfig,
  parse_mesh,
)
from seekax.parallel import mesh


def run_on(description: str, **data) -> Config:
  run = presets.shrink_run(presets.run_of(presets.tiny()))
  config = from_config_dict(run)
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, **data),
    parallel=ParallelConfig(mesh=description),
  )


class MeshTest(parameterized.TestCase):
  def test_description_is_read(self):
    self.assertEqual(parse_mesh('data:4'), {'data': 4})
    sizes = mesh_sizes('expert:-1,data:2', 8)
    self.assertEqual(list(sizes), list(MESH_AXES))
    used = {axis: size for axis, size in sizes.items() if size > 1}
    self.assertEqual(used, {'data': 2, 'expert': 4})

  @parameterized.parameters(
    ('dat:4', "unknown axis 'dat'.*did you mean 'data'"),
    ('', 'unknown axis'),
    ('data:2,', 'unknown axis'),
    ('data', 'name:size'),
    ('data:', 'name:size'),
    ('data:0', 'name:size'),
    ('data:-2', 'name:size'),
    ('data:two', 'name:size'),
    ('data:2,data:2', 'each axis once'),
    ('data:-1,expert:-1', 'only one axis can be -1'),
  )
  def test_wrong_description_is_explained(self, description, message):
    with self.assertRaisesRegex(ConfigError, message):
      parse_mesh(description)

  @parameterized.parameters(
    ('data:3,fsdp:-1', '8 devices are not divisible by 3'),
    ('data:16', 'has 16 devices, there are 8; give one axis -1'),
    ('data:2,expert:2', 'has 4 devices, there are 8; give one axis -1'),
  )
  def test_devices_that_are_not_there_are_refused(self, description, message):
    with self.assertRaisesRegex(ConfigError, message):
      mesh_sizes(description, 8)

  def test_one_device_of_several_is_enough(self):
    self.assertEqual(mesh_sizes('data:1', 8)['data'], 1)

  def test_one_device_is_not_enough_for_several_processes(self):
    with (
      mock.patch.object(jax, 'process_count', lambda: 2),
      self.assertRaisesRegex(ConfigError, 'of one process, there are 2 proc'),
    ):
      mesh.mesh_of(run_on('data:1'))

  def test_ragged_exchange_wants_gpus(self):
    config = run_on('data:1')
    compute = ComputeConfig(exchange='ragged')
    config = dataclasses.replace(config, compute=compute)
    if jax.default_backend() == 'cpu':
      with self.assertRaisesRegex(ConfigError, 'exchange=ragged.* cpu .*take'):
        mesh.mesh_of(config)

  @parameterized.parameters(
    ('data:3', 'data.batch_size=8 is not divisible by data:3'),
    ('data:4,fsdp:4', 'divisible by data:4 times fsdp:4.*split the batch'),
    ('tensor:3', 'model.num_heads=4 is not divisible by tensor:3'),
    ('context:3', 'data.sequence_length=32 is not divisible by context:3'),
    ('expert_node:8', 'may not split a routing group'),
    ('pipeline:3', 'is not divisible by pipeline:3.*embedding and head'),
    ('pipeline:8', 'pipeline:8, but the model has only . layers and MTP'),
  )
  def test_what_cannot_be_split_is_refused(self, description, message):
    config = run_on(description)
    with self.assertRaisesRegex(ConfigError, message):
      check_mesh(config)

  def test_experts_have_to_be_there_and_to_divide(self):
    model = dataclasses.replace(
      presets.tiny(),
      num_experts=6,
      num_expert_groups=1,
      num_kept_groups=1,
      experts_per_token=2,
    )
    config = dataclasses.replace(run_on('expert:4'), model=model)
    sizes = mesh_sizes('expert:4', 4)
    with self.assertRaisesRegex(ConfigError, 'model.num_experts=6 is not'):
      check_mesh(config, sizes)
    dense = dataclasses.replace(model, ffn='dense')
    config = dataclasses.replace(config, model=dense)
    with self.assertRaisesRegex(ConfigError, 'has no experts'):
      check_mesh(config, sizes)

  def test_tiles_of_fp8_stay_on_one_device(self):
    config = run_on('data:4', batch_size=8)
    train = dataclasses.replace(config.train, precision='fp8')
    config = dataclasses.replace(config, train=train)
    sizes = mesh_sizes('data:4', 4)
    with self.assertRaisesRegex(ConfigError, 'leaves 64 tokens to a device'):
      check_mesh(config, sizes)

  def test_too_many_devices_are_refused(self):
    have = len(jax.devices())
    with self.assertRaisesRegex(ConfigError, f'there are {have}'):
      mesh.make_mesh(f'data:{have + 1}')

  def test_axes_are_auto_and_all_there(self):
    made = mesh.make_mesh('data:1')
    self.assertEqual(tuple(made.shape), MESH_AXES)
    self.assertEqual(set(made.axis_types), {AxisType.Auto})
    with jax.set_mesh(made):
      self.assertEqual(mesh.current_sizes(), {})


if __name__ == '__main__':
  absltest.main()
