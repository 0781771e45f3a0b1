"""Describes GPUs to the compiler that needn't exist, such as `h100:256x8`.

XLA compiles for a GPU from a text description (GpuTargetConfigProto). Only what
it needs is given here: device properties as CUDA reports them, and versions of
the installed libraries.
"""

from collections.abc import Sequence
import dataclasses
import importlib
import importlib.util
import re
import types
from typing import TYPE_CHECKING

from seekax.configuration.errors import did_you_mean, InputError

if TYPE_CHECKING:
  import jax  # A plain plan does without: it would take a second longer.

_MOST_DEVICES = 2**16
_PLUGINS = ('jax_cuda13_plugin', 'jax_cuda12_plugin')
_INSTALL = "pip install 'jax[cuda13]>=0.10.2,<0.13'"


@dataclasses.dataclass(frozen=True)
class Gpu:
  """Properties of a GPU in SXM form, as CUDA reports them."""

  kind: str  # jax.Device.device_kind
  capability: tuple[int, int]
  cores: int  # number of streaming multiprocessors
  units_per_core: int  # number of float32 units
  clock_ghz: float
  memory_bytes: int
  memory_bandwidth: int  # bytes/s
  cache_bytes: int  # size of the L2 cache
  shared_bytes: int  # shared memory per core; a block gets 1 KiB less


_HOPPER = ((9, 0), 132, 128, 1.98)
# The names are those of hardware.DEVICES. H800 is H100 with slower links.
GPUS = {
  'a100': Gpu(
    'NVIDIA A100-SXM4-80GB',
    (8, 0),
    108,
    64,
    1.41,
    85_100_068_864,
    2_039_040_000_000,
    40 << 20,
    164 << 10,
  ),
  'h100': Gpu(
    'NVIDIA H100 80GB HBM3',
    *_HOPPER,
    84_942_979_072,
    3_352_320_000_000,
    50 << 20,
    228 << 10,
  ),
  'h800': Gpu(
    'NVIDIA H800',
    *_HOPPER,
    84_942_979_072,
    3_352_320_000_000,
    50 << 20,
    228 << 10,
  ),
  'h200': Gpu(
    'NVIDIA H200',
    *_HOPPER,
    150_109_880_320,
    4_800_000_000_000,
    50 << 20,
    228 << 10,
  ),
  'b200': Gpu(
    'NVIDIA B200',
    (10, 0),
    148,
    128,
    1.965,
    191_514_411_008,
    7_672_320_000_000,
    132_644_864,
    228 << 10,
  ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A number of equal hosts with equal GPUs."""

  name: str
  hosts: int
  gpus: int  # number per host

  @property
  def devices(self) -> int:
    return self.hosts * self.gpus

  @property
  def gpu(self) -> Gpu:
    return GPUS[self.name]

  def __str__(self) -> str:
    return f'{self.name}:{self.hosts}x{self.gpus}'


def parse(text: str) -> Topology:
  """Reads 'h100:256x8'.

  Raises:
    InputError: it can't be read, or the GPU isn't described here.
  """
  known = ', '.join(GPUS)
  match = re.fullmatch(r'([\w-]+):(\d+)x(\d+)', text.lower())
  if match is None:
    raise InputError(
      f'--topology={text} is no <gpu>:<hosts>x<GPUs per host>; write '
      f'h100:256x8; known: {known}'
    )
  name, hosts, gpus = match[1], int(match[2]), int(match[3])
  if name not in GPUS:
    raise InputError(
      f'--topology={text}: {name} is not described here'
      + did_you_mean(name, GPUS)
      + f'; known: {known}'
    )
  if not 0 < hosts * gpus <= _MOST_DEVICES:
    raise InputError(
      f'--topology={text} is {hosts * gpus:,} GPUs; give 1 to {_MOST_DEVICES:,}'
    )
  return Topology(name, hosts, gpus)


def has_compiler() -> bool:
  """Whether JAX's CUDA plugin is installed; it needs no GPU and no driver."""
  return any(importlib.util.find_spec(name) for name in _PLUGINS)


def require_compiler() -> None:
  """Checks early that the package which `devices` needs is installed.

  Raises:
    InputError: the CUDA plugin isn't installed.
  """
  if not has_compiler():
    raise InputError(
      '--topology= needs JAX with its CUDA plugin, which is not installed: '
      f'{_INSTALL} (no GPU or driver is needed)'
    )


def devices(topology: Topology) -> 'Sequence[jax.Device]':
  """Returns the devices to compile for, host by host.

  Raises:
    InputError: JAX can't create them.
  """
  import jax
  from jax.experimental import topologies

  require_compiler()
  try:
    found = topologies.get_topology_desc(
      platform='cuda',
      target_config=_description(topology.gpu),
      topology=f'1x{topology.hosts}x{topology.gpus}',
    ).devices
  except (jax.errors.JaxRuntimeError, NotImplementedError, TypeError) as error:
    raise InputError(
      f'--topology={topology}: jax {jax.__version__} does not compile for a '
      f'GPU that is not there; {_INSTALL} ({error})'
    ) from error
  if len(found) != topology.devices:
    raise InputError(
      f'--topology={topology}: jax {jax.__version__} made {len(found)} '
      f'devices of it; {_INSTALL}'
    )
  return found


def target(topology: Topology):
  """The device for which `ops/backends.py` chooses implementations."""
  from seekax.ops import devices, versions

  return devices.Device(
    'cuda',
    topology.gpu.capability,
    versions.tokamax(),
    versions.has_triton(),
    _versions().cudnn_build_version(),
    attached=False,
  )


def _versions() -> types.ModuleType:
  """The versions that the installed plugin was built against."""
  name = next(name for name in _PLUGINS if importlib.util.find_spec(name))
  return importlib.import_module(f'{name}._versions')


def _description(gpu: Gpu) -> str:
  """The GPU as XLA's text proto, with the values common to all GPUs."""
  versions = _versions()
  runtime = versions.cuda_runtime_build_version()
  cudnn = versions.cudnn_build_version()
  cuda = f'{runtime // 1000}.{runtime % 1000 // 10}.0'
  dnn = cudnn // 10000, cudnn // 100 % 100, cudnn % 100
  major, minor = gpu.capability
  return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units_per_core}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory_bytes}
  memory_bandwidth: {gpu.memory_bandwidth}
  l2_cache_size: {gpu.cache_bytes}
  shared_memory_per_core: {gpu.shared_bytes}
  shared_memory_per_block: {48 << 10}
  shared_memory_per_block_optin: {gpu.shared_bytes - 1024}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  driver_version: "{cuda}"
  runtime_version: "{cuda}"
  compile_time_toolkit_version: "{cuda}"
  dnn_version: "{'.'.join(map(str, dnn))}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: {dnn[0]} minor: {dnn[1]} patch: {dnn[2]} }}
device_description_str: "{gpu.kind}"
"""
