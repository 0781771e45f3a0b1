from absl.testing import absltest, parameterized

from seekax.planning import hardware


class PeakTest(parameterized.TestCase):
  @parameterized.parameters(
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA H100 80GB HBM3', 989.4e12),
    ('NVIDIA H800', 989.4e12),
    ('NVIDIA H200', 989.4e12),
    ('NVIDIA B200', 2250e12),
  )
  def test_known_device(self, kind, peak):
    self.assertEqual(hardware.peak_flops(kind), peak)

  @parameterized.parameters(
    'cpu',
    '',
    'TPU v5 lite',
    'NVIDIA H100 PCIe',
    'NVIDIA H100 NVL',
    'NVIDIA GH200 480GB',
    'NVIDIA GB200',
  )
  def test_unknown_device_has_no_peak(self, kind):
    self.assertEqual(hardware.peak_flops(kind), 0.0)

  def test_no_kind_belongs_to_two_devices(self):
    for device in hardware.DEVICES.values():
      for kind in device.device_kinds:
        self.assertEqual(hardware.peak_flops(kind), device.peak_flops)

  def test_names_are_found_by_their_lower_case(self):
    for key, device in hardware.DEVICES.items():
      self.assertEqual(key, device.name.lower())


if __name__ == '__main__':
  absltest.main()
