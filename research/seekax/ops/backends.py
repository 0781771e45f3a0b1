"""Which implementation of a costly operation runs where, and why.

A backend that is asked for by name runs or raises an error: another never
silently replaces it, and none runs where it is known to give wrong results.
'auto' takes the first backend of a list that can do what is needed, and reports
why it skipped the others.

The lists are in the order measured on an H200
(experiments/benchmarks/h200.md). Our own grouped products are up to three times
as fast as `blocked` and need no further package; with its gradients cuDNN's
attention is up to 9 % faster than tokamax's; for decoding, our kernel is faster
with one request, and plain products with several.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from seekax.configuration.compute import ComputeConfig
from seekax.configuration.errors import ConfigError, did_you_mean
from seekax.configuration.fp8 import FP8_PRODUCTS, Fp8Config
from seekax.configuration.model import ModelConfig
from seekax.ops import cudnn_attention, tokamax_backends

AUTO = 'auto'
GROUPED_MATMUL = 'grouped matmul'
ATTENTION = 'attention'
LATENT_ATTENTION = 'decoding on the latent cache'
FP8_PRODUCT = 'FP8 product'
# 'auto' tries the names in this order; one near the end runs on any platform.
GROUPED_MATMULS = ('pallas', 'mosaic', 'triton', 'blocked', 'ragged', 'dense')
ATTENTIONS = ('cudnn', 'tokamax', 'chunked', 'plain')
LATENT_ATTENTIONS = ('pallas', 'plain')
OLDEST_TOKAMAX = (0, 0, 17)
# On an H200 the weight gradient of tokamax's Mosaic kernel was off by 3 % of
# its norm, that of jax.lax.ragged_dot by 0.2 %, which is bfloat16 rounding.
_INEXACT_TOKAMAX = (0, 0, 17)
OLDEST_CUDNN = 90000
# The first version that takes values of another width than the keys'.
OLDEST_CUDNN_UNEQUAL = 91000

_AMPERE, _HOPPER, _BLACKWELL = (8, 0), (9, 0), (10, 0)


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


@dataclasses.dataclass(frozen=True)
class Choice:
  """An implementation, why it was chosen, and the operation it implements."""

  name: str
  reason: str
  subject: str


@dataclasses.dataclass(frozen=True)
class _Need:
  """What an implementation must be able to do."""

  device: Device
  dtype: str
  interpret: bool = False
  heads_width: int = 0
  value_width: int = 0
  segments: bool = False
  part: bool = False
  plain: bool = True
  fp8: Fp8Config = Fp8Config()


_TARGET: contextvars.ContextVar[Device | None] = contextvars.ContextVar(
  'target', default=None
)


@contextlib.contextmanager
def compiling_for(device: Device) -> Iterator[None]:
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
    return Device(platform, tokamax=tokamax_backends.version())
  return Device(
    platform,
    tuple(int(x) for x in first.compute_capability.split('.')),
    tokamax_backends.version(),
    tokamax_backends.has_triton(),
    cudnn_attention.version(),
  )


def choose_grouped_matmul(
  requested: str,
  device: Device,
  dtype: Any,
  *,
  interpret: bool = False,
  plain: bool = True,
  key: str = 'compute.grouped_matmul',
) -> Choice:
  """Chooses the grouped product.

  Args:
    requested: one of GROUPED_MATMULS, or auto.
    device: device that it runs on.
    dtype: dtype of rows and weights.
    interpret: whether Pallas kernels may run step by step, as in tests.
    plain: whether rows and weights are multiplied as they are, not in FP8.
    key: name of the config key, for messages.

  Raises:
    ConfigError: the requested one can't run there.
  """
  need = _Need(device, jnp.dtype(dtype).name, interpret=interpret, plain=plain)
  ladder = ('pallas', 'mosaic', 'triton', 'blocked')
  return _choose(
    GROUPED_MATMUL, key, requested, need, _GROUPED_MATMUL_PROBLEMS, ladder
  )


def choose_attention(
  requested: str,
  device: Device,
  dtype: Any,
  *,
  qk_width: int,
  value_width: int,
  segments: bool,
  part: bool = False,
  key: str = 'compute.attention_backend',
) -> Choice:
  """Chooses the attention over whole sequences.

  Args:
    requested: one of ATTENTIONS, or auto.
    device: device that it runs on.
    dtype: dtype of queries, keys and values.
    qk_width: width of a head's queries and keys, with their rotary part.
    value_width: width of a head's values.
    segments: whether documents are isolated.
    part: whether the queries are only a part of their sequence, on a mesh that
      splits sequences.
    key: name of the config key, for messages.

  Raises:
    ConfigError: the requested one can't run there, or would let documents see
      each other.
  """
  need = _Need(
    device,
    jnp.dtype(dtype).name,
    heads_width=qk_width,
    value_width=value_width,
    segments=segments,
    part=part,
  )
  ladder = ('cudnn', 'tokamax', 'chunked')
  return _choose(ATTENTION, key, requested, need, _ATTENTION_PROBLEMS, ladder)


def choose_latent_attention(
  requested: str,
  device: Device,
  dtype: Any,
  *,
  requests: int = 1,
  interpret: bool = False,
  key: str = 'compute.latent_attention_backend',
) -> Choice:
  """Chooses the absorbed attention for decoding.

  Args:
    requested: one of LATENT_ATTENTIONS, or auto.
    device: device that it runs on.
    dtype: dtype of the cache.
    requests: number of requests that are decoded together.
    interpret: whether the Pallas kernel may run step by step, as in tests.
    key: name of the config key, for messages.

  Raises:
    ConfigError: the requested one can't run there.
  """
  need = _Need(device, jnp.dtype(dtype).name, interpret=interpret)
  problems = _LATENT_ATTENTION_PROBLEMS
  ladder = LATENT_ATTENTIONS if requests == 1 else ('plain',)
  return _choose(LATENT_ATTENTION, key, requested, need, problems, ladder)


def choose_fp8_product(
  recipe: Fp8Config,
  device: Device,
  *,
  interpret: bool = False,
  key: str = 'fp8.products',
) -> Choice:
  """Chooses the product of FP8 operands in training.

  Args:
    recipe: one of FP8_PRODUCTS or auto, and how operands are quantised and
      sums accumulated.
    device: device that it runs on.
    interpret: whether the Pallas kernel may run step by step, as in tests.
    key: name of the config key, for messages.

  Raises:
    ConfigError: the requested one can't run there, or not with that recipe.
  """
  need = _Need(device, 'float32', interpret=interpret, fp8=recipe)
  problems = {'pallas': _fp8_kernel, 'emulated': _nothing}
  return _choose(
    FP8_PRODUCT, key, recipe.products, need, problems, FP8_PRODUCTS
  )


def for_training(
  model: ModelConfig,
  compute: ComputeConfig,
  dtype: Any,
  isolate_documents: bool,
  fp8: Fp8Config | None = None,
) -> list[Choice]:
  """Returns what a training run uses on the default device.

  Args:
    model: gives the widths.
    compute: gives the names of backends.
    dtype: compute dtype.
    isolate_documents: whether documents are isolated.
    fp8: how linear maps multiply in FP8; None: operands as they are.

  Raises:
    ConfigError: what the config asks for can't run here.
  """
  device = present()
  choices = [
    choose_attention(
      compute.attention_backend,
      device,
      dtype,
      qk_width=model.qk_head_dim,
      value_width=model.value_head_dim,
      segments=isolate_documents,
    )
  ]
  if model.uses_experts:
    choices.append(
      choose_grouped_matmul(
        compute.grouped_matmul, device, dtype, plain=fp8 is None
      )
    )
  if fp8:
    choices.append(choose_fp8_product(fp8, device))
  return choices


def _choose(
  subject: str,
  key: str,
  requested: str,
  need: _Need,
  problems: dict[str, Callable[[_Need], str]],
  ladder: Sequence[str],
) -> Choice:
  if requested != AUTO:
    if requested not in problems:
      known = (AUTO, *problems)
      raise ConfigError(
        f'{key}={requested!r} is not one of {", ".join(known)}'
        + did_you_mean(requested, known)
      )
    if problem := problems[requested](need):
      raise ConfigError(f'{key}={requested}: {problem}; or set {key}={AUTO}')
    return Choice(requested, 'asked for', subject)
  passed = []
  for name in ladder:
    problem = problems[name](need)
    if not problem:
      break
    passed.append(f'{name}: {problem.partition(";")[0]}')
  if need.device.platform != 'cuda':
    reason = f'the portable one, on {need.device.platform}'
  else:
    reason = '; '.join([f'on {need.device}', *passed])
  return Choice(name, reason, subject)


# Each check returns why an implementation can't run, or ''. The problem stands
# before the first semicolon, the fix after it.


def _nothing(need: _Need) -> str:
  del need
  return ''


def _plain_only(problem: Callable[[_Need], str]) -> Callable[[_Need], str]:
  """Adds to a check that the implementation multiplies no FP8."""

  def check(need: _Need) -> str:
    if not need.plain:
      return 'multiplies no FP8; take blocked'
    return problem(need)

  return check


def _gpu(need: _Need, least: tuple[int, int]) -> str:
  if need.device.platform != 'cuda':
    return (
      f'needs an NVIDIA GPU, this is {need.device.platform}; run it on a GPU'
    )
  if need.device.compute_capability < least:
    return (
      f'needs compute capability {least[0]}.{least[1]}, this is {need.device}; '
      'run it on a newer GPU'
    )
  return ''


def _dtype(need: _Need, *known: str) -> str:
  if need.dtype not in known:
    return f'takes {" or ".join(known)}, not {need.dtype}; set train.precision'
  return ''


def _whole(need: _Need) -> str:
  if not need.part:
    return ''
  return (
    'takes whole sequences, and the mesh axis context splits them; take chunked'
  )


def _attached(need: _Need) -> str:
  if need.device.attached:
    return ''
  return 'needs a GPU that is present, to ask what it can do; run it on one'


def _tokamax(need: _Need) -> str:
  oldest = '.'.join(map(str, OLDEST_TOKAMAX))
  install = f"; pip install 'tokamax>={oldest}', on Python 3.12 or later"
  if problem := _attached(need):
    return problem
  if not need.device.tokamax:
    return f'tokamax is not installed{install}'
  if need.device.tokamax < OLDEST_TOKAMAX:
    found = '.'.join(map(str, need.device.tokamax))
    return f'tokamax {found} is older than {oldest}{install}'
  return ''


def _pallas(need: _Need) -> str:
  problem = '' if need.interpret else _gpu(need, _AMPERE)
  return problem or _dtype(need, 'float32', 'bfloat16')


def _fp8_kernel(need: _Need) -> str:
  recipe = need.fp8
  problem = '' if need.interpret else _gpu(need, _HOPPER)
  for name, known in (
    ('tile_size', 128),
    ('gradient_format', 'e4m3'),
    ('accumulation', 'float32'),
  ):
    found = getattr(recipe, name)
    if not problem and found != known:
      problem = f'takes fp8.{name}={known}, not {found}; take emulated'
  return problem


def _mosaic(need: _Need) -> str:
  problem = _gpu(need, _HOPPER)
  if not problem and need.device.compute_capability >= _BLACKWELL:
    problem = (
      f'has no gradient of the weights beyond Hopper, this is {need.device}; '
      'take pallas or triton'
    )
  problem = problem or _tokamax(need) or _dtype(need, 'bfloat16')
  if not problem and need.device.tokamax <= _INEXACT_TOKAMAX:
    found = '.'.join(map(str, need.device.tokamax))
    problem = (
      f'in tokamax {found} has a gradient of the weights that is off by 3 % of '
      'its norm; take pallas'
    )
  return problem


def _triton(need: _Need) -> str:
  problem = _gpu(need, _AMPERE) or _tokamax(need)
  if not problem and not need.device.tokamax_triton:
    problem = (
      'triton or jax-triton is not installed; pip install triton jax-triton'
    )
  return problem or _dtype(need, 'bfloat16')


def _cudnn(need: _Need) -> str:
  problem = _gpu(need, _AMPERE) or _dtype(need, 'bfloat16', 'float16')
  problem = problem or _whole(need)
  if problem:
    return problem
  device = need.device
  is_hopper = device.compute_capability >= _HOPPER
  widest = 256 if is_hopper else 128
  unequal = need.heads_width != need.value_width
  if problem := _attached(need):
    return problem
  if need.segments:
    return (
      'would let documents see each other, it takes no document numbers; set '
      'data.isolate_documents=False or take tokamax or chunked'
    )
  if device.cudnn < OLDEST_CUDNN:
    return f'needs cuDNN 9, found {_cudnn_name(device)}; install a newer one'
  if unequal and (not is_hopper or device.cudnn < OLDEST_CUDNN_UNEQUAL):
    return (
      f'query/key width {need.heads_width} beside value width '
      f'{need.value_width} needs cuDNN 9.10 on Hopper or later, this is cuDNN '
      f'{_cudnn_name(device)} on {device}; install a newer one or take tokamax'
    )
  if max(need.heads_width, need.value_width) > widest or any(
    width % 8 for width in (need.heads_width, need.value_width)
  ):
    return (
      f'widths {need.heads_width} and {need.value_width} are not multiples of '
      f'8 up to {widest}; take chunked'
    )
  blackwell = device.compute_capability >= _BLACKWELL
  if blackwell and not unequal and need.heads_width > 128:
    return (
      f'has no backward pass of equal widths {need.heads_width} on Blackwell; '
      'take tokamax or chunked'
    )
  return ''


def _cudnn_name(device: Device) -> str:
  if not device.cudnn:
    return 'none'
  major, rest = divmod(device.cudnn, 10000)
  return f'{major}.{rest // 100}.{rest % 100}'


def _tokamax_attention(need: _Need) -> str:
  # Forward kernels reach back to Ampere, backward kernels to Hopper.
  return (
    _gpu(need, _HOPPER)
    or _tokamax(need)
    or _dtype(need, 'bfloat16', 'float16')
    or _whole(need)
  )


_GROUPED_MATMUL_PROBLEMS = {
  'pallas': _plain_only(_pallas),
  'mosaic': _plain_only(_mosaic),
  'triton': _plain_only(_triton),
  'blocked': _nothing,
  'ragged': _plain_only(_nothing),
  'dense': _plain_only(_nothing),
}
_ATTENTION_PROBLEMS = {
  'cudnn': _cudnn,
  'tokamax': _tokamax_attention,
  'chunked': _nothing,
  'plain': _nothing,
}
_LATENT_ATTENTION_PROBLEMS = {'pallas': _pallas, 'plain': _nothing}
