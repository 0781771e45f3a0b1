"""Accelerators: what a data sheet says about them.

Figures are the vendor's for the SXM form, in decimal units. Peaks are those of
dense bfloat16 products with float32 accumulation; the data sheets of Hopper and
Blackwell print twice as much, for matrices that are half zeros.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
  """One accelerator."""

  name: str
  peak_flops: float  # FLOP/s, bfloat16, dense
  memory_bytes: float
  memory_bandwidth: float  # bytes/s
  device_kinds: tuple[str, ...]  # parts of jax.Device.device_kind


DEVICES: dict[str, Device] = {
  # NVIDIA A100 80GB data sheet; the 40 GB and PCIe forms have the same peak.
  'a100': Device('A100', 312e12, 80e9, 2.039e12, ('NVIDIA A100',)),
  # NVIDIA H100 data sheet, SXM column: 1,979 TFLOP/s with sparsity.
  'h100': Device('H100', 989.4e12, 80e9, 3.35e12, ('NVIDIA H100',)),
  # H100's processor and memory with slower links; table 4 of arXiv 2505.09343
  # implies a peak of 988 to 990 TFLOP/s.
  'h800': Device('H800', 989.4e12, 80e9, 3.35e12, ('NVIDIA H800',)),
  # NVIDIA H200 data sheet, SXM column: H100's processor with other memory.
  'h200': Device('H200', 989.4e12, 141e9, 4.8e12, ('NVIDIA H200',)),
  # NVIDIA DGX B200 data sheet over 8: 36 PFLOP/s with sparsity, 1,440 GB,
  # 64 TB/s.
  'b200': Device('B200', 2250e12, 180e9, 8e12, ('NVIDIA B200',)),
}

# These share a name with a faster SXM form, so that its peak would be wrong.
_SLOWER_FORMS = ('H100 PCIe', 'H100 NVL', 'H800 PCIe', 'H200 NVL')


def peak_flops(device_kind: str) -> float:
  """Dense bfloat16 peak of the device that JAX names so.

  Args:
    device_kind: `jax.devices()[0].device_kind`, e.g. 'NVIDIA H100 80GB HBM3'.

  Returns:
    FLOP/s; 0.0 where it is unknown, as for any CPU.
  """
  if any(form in device_kind for form in _SLOWER_FORMS):
    return 0.0
  for device in DEVICES.values():
    if any(kind in device_kind for kind in device.device_kinds):
      return device.peak_flops
  return 0.0
