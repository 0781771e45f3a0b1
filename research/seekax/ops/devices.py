"""The device that programs are compiled for, and what it can do."""

from collections.abc import Generator
import contextlib
import contextvars
import dataclasses
import functools

import jax

from seekax.ops import versions


@dataclasses.dataclass(frozen=True)
class Device:
  """What a choice depends on.

  Attributes:
    platform: cpu, cuda, rocm or tpu.
    compute_capability: compute capability of an NVIDIA GPU, e.g. (9, 0); ()
      elsewhere.
    tokamax: version of tokamax, e.g. (0, 0, 17); () if it isn't installed.
    tokamax_triton: whether the packages of its Triton kernels are installed.
    cudnn: version of cuDNN, e.g. 91002; 0 if there is none.
    attached: whether the device is present, and not only compiled for.
  """

  platform: str = 'cpu'
  compute_capability: tuple[int, ...] = ()
  tokamax: tuple[int, ...] = ()
  tokamax_triton: bool = False
  cudnn: int = 0
  attached: bool = True

  def __str__(self) -> str:
    if not self.compute_capability:
      return self.platform
    capability = '.'.join(map(str, self.compute_capability))
    return f'{self.platform} with compute capability {capability}'


_TARGET: contextvars.ContextVar[Device | None] = contextvars.ContextVar(
  'target', default=None
)


@contextlib.contextmanager
def compiling_for(device: Device) -> Generator[None]:
  """While open, choices are made for this device, which needn't be present."""
  token = _TARGET.set(device)
  try:
    yield
  finally:
    _TARGET.reset(token)


def present() -> Device:
  """The device to compile for: that of `compiling_for`, or the default one."""
  return _TARGET.get() or _default()


@functools.cache
def _default() -> Device:
  first = jax.devices()[0]
  platform = first.platform
  if platform == 'gpu':
    name = first.client.platform_version
    platform = 'rocm' if 'rocm' in name else 'cuda'
  if platform != 'cuda':
    return Device(platform, tokamax=versions.tokamax())
  return Device(
    platform,
    tuple(int(x) for x in first.compute_capability.split('.')),
    versions.tokamax(),
    versions.has_triton(),
    versions.cudnn(),
  )
