"""GPUs that are only described."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax
from jax.experimental import topologies

from seekax.configuration.errors import InputError
from seekax.dryrun import gpus
from seekax.planning import hardware


class _Versions:
  @staticmethod
  def cudnn_build_version():
    return 91002

  @staticmethod
  def cuda_runtime_build_version():
    return 13010


class ParseTest(parameterized.TestCase):
  def test_hosts_and_their_gpus(self):
    found = gpus.parse('H100:256x8')
    self.assertEqual(found, gpus.Topology('h100', 256, 8))
    self.assertEqual(found.devices, 2048)
    self.assertEqual(str(found), 'h100:256x8')

  @parameterized.parameters(
    ('h100', 'write h100:256x8'),
    ('h100:8', 'write h100:256x8'),
    ('h100:2x8x8', 'write h100:256x8'),
    ('h100:-1x8', 'write h100:256x8'),
    ('h10:2x8', "did you mean 'h100'?"),
    ('l4:1x8', 'known: a100, h100'),
    ('h100:0x8', 'give 1 to'),
    ('h100:99999x8', 'give 1 to'),
  )
  def test_what_cannot_be_read_is_refused(self, text, words):
    with self.assertRaises(InputError) as caught:
      gpus.parse(text)
    self.assertIn(words, str(caught.exception))


class DescriptionTest(parameterized.TestCase):
  @parameterized.parameters(*gpus.GPUS)
  def test_it_is_the_planner_s_device(self, name):
    gpu, device = gpus.GPUS[name], hardware.DEVICES[name]
    self.assertIn(name, hardware.planned())
    self.assertEqual(hardware.peak_flops(gpu.kind), device.peak_flops)
    # Data sheets count in powers of ten, and round.
    self.assertBetween(gpu.memory_bytes / device.memory_bytes, 1, 1.08)
    self.assertBetween(
      gpu.memory_bandwidth / device.memory_bandwidth, 0.95, 1.001
    )
    # Lanes of float32, two FLOP each: 16 of them make the bfloat16 peak of
    # Ampere's and Hopper's tensor cores, and 32 Blackwell's, or nearly.
    lanes = 2 * gpu.cores * gpu.units_per_core * gpu.clock_ghz * 1e9
    self.assertBetween(device.peak_flops / lanes, 12, 32)

  @mock.patch.object(gpus, '_versions', lambda: _Versions)
  def test_text_names_versions_and_capability(self):
    text = gpus._description(gpus.GPUS['a100'])
    for words in (
      'cuda_compute_capability { major: 8 minor: 0 }',
      'dnn_version_info { major: 9 minor: 10 patch: 2 }',
      'runtime_version: "13.1.0"',
      'core_count: 108',
      'device_description_str: "NVIDIA A100-SXM4-80GB"',
    ):
      self.assertIn(words, text)

  @mock.patch.object(gpus, '_versions', lambda: _Versions)
  def test_choices_are_made_for_what_is_not_there(self):
    device = gpus.target(gpus.parse('h200:1x8'))
    self.assertEqual(device.platform, 'cuda')
    self.assertEqual(device.compute_capability, (9, 0))
    self.assertEqual(device.cudnn, 91002)
    self.assertFalse(device.attached)


class RefusalTest(parameterized.TestCase):
  @mock.patch.object(gpus, 'has_compiler', lambda: False)
  def test_without_the_plugin(self):
    with self.assertRaisesRegex(InputError, r'pip install .*jax\[cuda13\]'):
      gpus.devices(gpus.parse('h100:1x8'))

  @parameterized.parameters(
    NotImplementedError('topology not implemented for cuda'),
    jax.errors.JaxRuntimeError('UNIMPLEMENTED: no GPU'),
    TypeError('unexpected keyword'),
  )
  @mock.patch.object(gpus, 'has_compiler', lambda: True)
  @mock.patch.object(gpus, '_versions', lambda: _Versions)
  def test_of_a_jax_that_cannot(self, error):
    with (
      mock.patch.object(topologies, 'get_topology_desc', side_effect=error),
      self.assertRaisesRegex(InputError, 'does not compile for a GPU'),
    ):
      gpus.devices(gpus.parse('h100:1x8'))


if __name__ == '__main__':
  absltest.main()
