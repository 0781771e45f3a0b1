"""Accelerators, and what a program reaches of them: every constant of a plan.

First what data sheets say of devices, then what the model of time
(step_time.py) and memory assumes beside them, each with its source, "assumed",
or "fitted" (fit.py, which finds the same numbers again). What is a
choice of this program (chunks of logits, the exchange's room) stands where it
is used, in memory.py and traffic.py, and what a service is asked in serving.py.

Figures are the vendor's, for the SXM form where there are several, in decimal
units. Peaks are those of dense bfloat16 products with float32 accumulation; the
data sheets from Ampere to Blackwell print twice as much beside them or instead,
for matrices that are half zeros. A device that isn't here gets no MFU, rather
than one from a guessed peak.

Links count one direction: a device that sends 450 GB/s over NVLink also
receives as much, and data sheets print the sum, 900.
"""

import dataclasses
import re

from seekax.configuration.errors import did_you_mean, InputError


@dataclasses.dataclass(frozen=True)
class Device:
  """One accelerator."""

  name: str
  peak_flops: float  # FLOP/s, bfloat16, dense
  memory_bytes: float
  memory_bandwidth: float  # bytes/s
  device_kinds: tuple[str, ...]  # how jax.Device.device_kind begins
  fp8_flops: float = 0.0  # FLOP/s, dense; 0: has no FP8, or isn't given here
  link_bandwidth: float = 0.0  # bytes/s to the devices of its domain
  domain_size: int = 1  # devices that these links join (NVLink)
  network_bandwidth: float = 0.0  # bytes/s to all others, per device


DEVICES: dict[str, Device] = {
  # NVIDIA A100 80GB data sheet; the 40 GB and PCIe forms have the same peak.
  # NVLink 600 GB/s both ways; DGX A100: eight, each with 200 Gb/s InfiniBand.
  'a100': Device(
    'A100',
    312e12,
    80e9,
    2.039e12,
    ('NVIDIA A100',),
    link_bandwidth=300e9,
    domain_size=8,
    network_bandwidth=25e9,
  ),
  # NVIDIA H100 data sheet, SXM column: 1,979 TFLOP/s with sparsity, 3,958 in
  # FP8; NVLink 900 GB/s both ways. DGX H100: eight, 400 Gb/s InfiniBand each.
  'h100': Device(
    'H100',
    989.4e12,
    80e9,
    3.35e12,
    ('NVIDIA H100',),
    fp8_flops=1979e12,
    link_bandwidth=450e9,
    domain_size=8,
    network_bandwidth=50e9,
  ),
  # H100's processor and memory with slower links; table 4 of arXiv 2505.09343
  # implies a peak of 988 to 990 TFLOP/s; the same paper: NVLink 400 GB/s both
  # ways, 400 Gb/s InfiniBand per device.
  'h800': Device(
    'H800',
    989.4e12,
    80e9,
    3.35e12,
    ('NVIDIA H800',),
    fp8_flops=1979e12,
    link_bandwidth=200e9,
    domain_size=8,
    network_bandwidth=50e9,
  ),
  # NVIDIA H200 data sheet, SXM column: H100's processor with other memory.
  'h200': Device(
    'H200',
    989.4e12,
    141e9,
    4.8e12,
    ('NVIDIA H200',),
    fp8_flops=1979e12,
    link_bandwidth=450e9,
    domain_size=8,
    network_bandwidth=50e9,
  ),
  # NVIDIA GH200 data sheet: H100's processor; the form with 96 GB of HBM3.
  'gh200': Device('GH200', 989.4e12, 96e9, 4e12, ('NVIDIA GH200',)),
  # NVIDIA DGX B200 data sheet over 8: 36 PFLOP/s with sparsity, 1,440 GB,
  # 64 TB/s; 72 PFLOP/s of FP8 with sparsity, NVLink 14.4 TB/s both ways, eight
  # ports of 400 Gb/s.
  'b200': Device(
    'B200',
    2250e12,
    180e9,
    8e12,
    ('NVIDIA B200',),
    fp8_flops=4500e12,
    link_bandwidth=900e9,
    domain_size=8,
    network_bandwidth=50e9,
  ),
  # NVIDIA GB200 NVL72 data sheet over 72: 360 PFLOP/s with sparsity, 720 of
  # FP8, 13.4 TB, 576 TB/s, NVLink 130 TB/s both ways; 400 Gb/s ports. How JAX
  # names it hasn't been seen here, so a run on one gets no MFU.
  'gb200': Device(
    'GB200',
    2500e12,
    186e9,
    8e12,
    (),
    fp8_flops=5000e12,
    link_bandwidth=900e9,
    domain_size=72,
    network_bandwidth=50e9,
  ),
  # Two ordinary cores of a server (Intel Xeon, AVX-512), as this project's
  # figures for laptops were made on: measured products of float32 matrices ran
  # at about 190 GFLOP/s together. Memory and its bandwidth are round figures.
  'cpu': Device('CPU', 190e9, 16e9, 20e9, ()),
  # NVIDIA A10 and A10G (the form that AWS rents) data sheets.
  'a10': Device('A10', 125e12, 24e9, 600e9, ('NVIDIA A10',)),
  'a10g': Device('A10G', 70e12, 24e9, 600e9, ('NVIDIA A10G',)),
  # NVIDIA L4 and L40S data sheets; L4's prints 242 TFLOP/s, with sparsity.
  'l4': Device('L4', 121e12, 24e9, 300e9, ('NVIDIA L4',)),
  'l40s': Device('L40S', 362.05e12, 48e9, 864e9, ('NVIDIA L40S',)),
  # NVIDIA GA102, Ada and RTX Blackwell whitepapers; half of their rates with
  # float16 accumulation.
  'rtx-3090': Device(
    'RTX 3090', 71e12, 24e9, 936e9, ('NVIDIA GeForce RTX 3090',)
  ),
  'rtx-4090': Device(
    'RTX 4090', 165.2e12, 24e9, 1.008e12, ('NVIDIA GeForce RTX 4090',)
  ),
  'rtx-5090': Device(
    'RTX 5090', 209.5e12, 32e9, 1.792e12, ('NVIDIA GeForce RTX 5090',)
  ),
  # Google Cloud's pages on TPU versions, per chip, which is one JAX device.
  'tpu-v4': Device('TPU v4', 275e12, 32e9, 1.2e12, ('TPU v4',)),
  'tpu-v5e': Device('TPU v5e', 197e12, 16e9, 800e9, ('TPU v5 lite', 'TPU v5e')),
  'tpu-v5p': Device('TPU v5p', 459e12, 95e9, 2.765e12, ('TPU v5', 'TPU v5p')),
  'tpu-v6e': Device(
    'TPU v6e', 918e12, 32e9, 1.6e12, ('TPU v6 lite', 'TPU v6e')
  ),
}

# These begin like another form, whose peak would be wrong.
_OTHER_FORMS = ('H100 PCIe', 'H100 NVL', 'H800 PCIe', 'H200 NVL')
_OTHER_FORMS += ('Laptop', 'RTX 3090 Ti', 'RTX 4090 D', 'RTX 5090 D')
_OTHER_FORMS += ('TPU v4 lite',)


def peak_flops(device_kind: str) -> float:
  """Dense bfloat16 peak of the device that JAX names so.

  Args:
    device_kind: `jax.devices()[0].device_kind`, e.g. 'NVIDIA H100 80GB HBM3'.

  Returns:
    FLOP/s; 0.0 where it is unknown, as for any CPU.
  """
  if any(form in device_kind for form in _OTHER_FORMS):
    return 0.0
  peaks = {
    kind: device.peak_flops
    for device in DEVICES.values()
    for kind in device.device_kinds
    # Whole words: an A10G or A100 is no A10.
    if re.match(rf'{re.escape(kind)}\b', device_kind)
  }
  return peaks[max(peaks, key=len)] if peaks else 0.0


def planned() -> list[str]:
  """Names of the devices whose links are given, which a plan needs."""
  return [
    name
    for name, device in DEVICES.items()
    if device.network_bandwidth or name == 'cpu'
  ]


def find_device(name: str) -> Device:
  """The device of a name such as 'h800', with all that a plan needs.

  Raises:
    InputError: it is unknown, or its links aren't given here.
  """
  known = planned()
  if name.lower() in known:
    return DEVICES[name.lower()]
  raise InputError(
    f'--hardware={name}: '
    + ('its links are not given here' if name in DEVICES else 'unknown')
    + (did_you_mean(name.lower(), known) or '')
    + f'; known: {", ".join(known)}'
  )


# --- What a program reaches. --------------------------------------------------

# Bytes of a device that no plan may use: the CUDA context, NCCL's buffers, what
# the allocator can't hand out. Assumed; not measured here.
RESERVED_BYTES = 2e9

# Elementwise passes of F, I and W, relative to F. Assumed: in I both the values
# and their gradients are read.
PASSES = {'forward': 1.0, 'backward_input': 2.0, 'backward_weight': 1.0}
# Products of attention's backward pass over those of its forward pass: five
# where forward has two (FlashAttention-2, arXiv 2307.08691, algorithm 2).
ATTENTION_BACKWARD = 2.5
# Rate of float32 products (TF32) over bfloat16's: A100 to B200 data sheets.
TF32_SHARE = 0.5
# Bytes of values: bfloat16; FP8 with a float32 scale per tile of 128
# (DeepSeek-V3, section 3.3.2).
FLOAT32, BFLOAT16 = 4.0, 2.0
FP8 = 1.0 + 4.0 / 128
# Gradients are added up and scattered between data ranks in float32, as this
# program does; calibration.py notes where a published run says otherwise.
# DeepSeek-V3 keeps them so (section 3.3.3), but doesn't say how they are sent;
# Llama 3.1 405B did both in float32 (arXiv 2407.21783, section 3.3.2).


@dataclasses.dataclass(frozen=True)
class Constants:
  """What the model of time assumes.

  Attributes:
    network_efficiency: of the network's peak. Published: the exchange of V3
      gets above 40 of 50 GB/s (arXiv 2505.09343).
    link_efficiency: of the links' peak. Published: 160 of 200 GB/s
      (DeepSeek-V3, section 3.2.2).
    memory_efficiency: of the memory's peak. Assumed; FlashMLA publishes 3,000
      of 3,350 GB/s on an H800.
    attention_efficiency: of the bfloat16 peak, forward and backward. Assumed;
      FlashAttention-3's best forward pass on an H100 is published as 0.75.
    expert_efficiency: of a precision's peak, in the products of models with
      experts. Fitted on the phases of V3's step (arXiv 2505.09343, table 4)
      and Megatron's bfloat16 row, together with `passes`; it is what halves
      with the precision, more than a kernel reaches, and no measure of kernels.
    passes: over all intermediate bytes of a layer per F. Fitted; it holds
      everything that is not a product: norms, permutations, quantization,
      launches.
    dense_efficiency: as `expert_efficiency`, in dense models. Fitted on the
      hours of Llama 3.1 405B, so that it also holds the time a run stood still.
    overlap_slowdown: of a pair over its arithmetic alone. Fitted on the phases.
    bubble_stretch: bubble over its closed form. Fitted on the phases; it holds
      uneven stages and transfers.
  """

  network_efficiency: float = 0.8
  link_efficiency: float = 0.8
  memory_efficiency: float = 0.8
  attention_efficiency: float = 0.5
  expert_efficiency: float = 0.8842
  passes: float = 5.150
  dense_efficiency: float = 0.7993
  overlap_slowdown: float = 1.0582
  bubble_stretch: float = 1.8693


# Printed by experiments/deepseek_v3/planner_errors.py --fit.
FITTED = Constants()
