from absl.testing import absltest, parameterized

from seekax.planning import hardware


class PeakTest(parameterized.TestCase):
  @parameterized.parameters(
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA H100 80GB HBM3', 989.4e12),
    ('NVIDIA H800', 989.4e12),
    ('NVIDIA H200', 989.4e12),
    ('NVIDIA B200', 2250e12),
    ('NVIDIA GH200 480GB', 989.4e12),
    ('NVIDIA A10', 125e12),
    ('NVIDIA A10G', 70e12),
    ('NVIDIA L4', 121e12),
    ('NVIDIA L40S', 362.05e12),
    ('NVIDIA GeForce RTX 3090', 71e12),
    ('NVIDIA GeForce RTX 4090', 165.2e12),
    ('NVIDIA GeForce RTX 5090', 209.5e12),
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
  )
  def test_known_device(self, kind, peak):
    self.assertEqual(hardware.peak_flops(kind), peak)

  @parameterized.parameters(
    'cpu',
    '',
    'TPU v4 lite',
    'TPU v7',
    'NVIDIA H100 PCIe',
    'NVIDIA H100 NVL',
    'NVIDIA GB200',
    'NVIDIA L40',
    'NVIDIA A40',
    'NVIDIA GeForce RTX 4090 D',
    'NVIDIA GeForce RTX 4090 Laptop GPU',
    'NVIDIA GeForce RTX 3090 Ti',
  )
  def test_unknown_device_has_no_peak(self, kind):
    self.assertEqual(hardware.peak_flops(kind), 0.0)

  def test_no_kind_belongs_to_two_devices(self):
    for device in hardware.DEVICES.values():
      for kind in device.device_kinds:
        self.assertEqual(hardware.peak_flops(kind), device.peak_flops)

  def test_names_are_found_by_their_lower_case(self):
    for key, device in hardware.DEVICES.items():
      self.assertEqual(key, device.name.lower().replace(' ', '-'))


if __name__ == '__main__':
  absltest.main()
