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

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp

from seekax.configuration.compute import ComputeConfig
from seekax.configuration.errors import ConfigError, did_you_mean
from seekax.configuration.fp8 import FP8_PRODUCTS, Fp8Config
from seekax.configuration.model import ModelConfig
from seekax.ops import cudnn_attention, pallas_block_fp8, tokamax_backends
from seekax.ops.devices import Device, present
from seekax.ops.needs import Need, no_problem, pallas_problem

AUTO = 'auto'
GROUPED_MATMUL = 'grouped matmul'
ATTENTION = 'attention'
LATENT_ATTENTION = 'decoding on the latent cache'
FP8_PRODUCT = 'FP8 product'
# 'auto' tries the names in this order; one near the end runs on any platform.
GROUPED_MATMULS = ('pallas', 'mosaic', 'triton', 'blocked', 'ragged', 'dense')
ATTENTIONS = ('cudnn', 'tokamax', 'chunked', 'plain')
LATENT_ATTENTIONS = ('pallas', 'plain')


@dataclasses.dataclass(frozen=True)
class Choice:
  """An implementation, why it was chosen, and the operation it implements."""

  name: str
  reason: str
  subject: str


def choose_grouped_matmul(
  requested: str,
  device: Device,
  dtype: jax.typing.DTypeLike,
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
  need = Need(device, jnp.dtype(dtype).name, interpret=interpret, plain=plain)
  ladder = ('pallas', 'mosaic', 'triton', 'blocked')
  return _choose(
    GROUPED_MATMUL, key, requested, need, _GROUPED_MATMUL_PROBLEMS, ladder
  )


def choose_attention(
  requested: str,
  device: Device,
  dtype: jax.typing.DTypeLike,
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
  need = Need(
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
  dtype: jax.typing.DTypeLike,
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
  need = Need(device, jnp.dtype(dtype).name, interpret=interpret)
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
  need = Need(device, 'float32', interpret=interpret, fp8=recipe)
  problems = {'pallas': pallas_block_fp8.problem, 'emulated': no_problem}
  return _choose(
    FP8_PRODUCT, key, recipe.products, need, problems, FP8_PRODUCTS
  )


def for_training(
  model: ModelConfig,
  compute: ComputeConfig,
  dtype: jax.typing.DTypeLike,
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
  need: Need,
  problems: Mapping[str, Callable[[Need], str]],
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


def _plain_only(problem: Callable[[Need], str]) -> Callable[[Need], str]:
  """Adds to a check that the implementation multiplies no FP8."""

  def check(need: Need) -> str:
    if not need.plain:
      return 'multiplies no FP8; take blocked'
    return problem(need)

  return check


_GROUPED_MATMUL_PROBLEMS = {
  'pallas': _plain_only(pallas_problem),
  'mosaic': _plain_only(tokamax_backends.mosaic_problem),
  'triton': _plain_only(tokamax_backends.triton_problem),
  'blocked': no_problem,
  'ragged': _plain_only(no_problem),
  'dense': _plain_only(no_problem),
}
_ATTENTION_PROBLEMS = {
  'cudnn': cudnn_attention.problem,
  'tokamax': tokamax_backends.attention_problem,
  'chunked': no_problem,
  'plain': no_problem,
}
_LATENT_ATTENTION_PROBLEMS = {'pallas': pallas_problem, 'plain': no_problem}
