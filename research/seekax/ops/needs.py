"""What an implementation must be able to do, and checks that several share.

Each check returns why an implementation can't run, or ''. The problem stands
before the first semicolon, the fix after it.
"""

import dataclasses

from seekax.configuration.fp8 import Fp8Config
from seekax.ops.devices import Device

AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)


@dataclasses.dataclass(frozen=True)
class Need:
  """What an implementation must be able to do.

  Attributes:
    device: the device that is compiled for.
    dtype: name of the arrays' dtype.
    interpret: whether Pallas kernels may run step by step, as in tests.
    heads_width: width of a head's queries and keys, for attention.
    value_width: width of a head's values, for attention.
    segments: whether documents are kept apart, for attention.
    part: whether devices have parts of sequences, for attention.
    plain: whether operands are multiplied as they are, not in FP8.
    fp8: how FP8 is made and added up, for FP8 products.
  """

  device: Device
  dtype: str
  interpret: bool = False
  heads_width: int = 0
  value_width: int = 0
  segments: bool = False
  part: bool = False
  plain: bool = True
  fp8: Fp8Config = Fp8Config()


def no_problem(need: Need) -> str:
  """For implementations that run anywhere."""
  del need
  return ''


def gpu_problem(need: Need, least: tuple[int, int]) -> str:
  """Refuses all but NVIDIA GPUs of at least this compute capability."""
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


def dtype_problem(need: Need, *known: str) -> str:
  """Refuses other dtypes than these."""
  if need.dtype not in known:
    return f'takes {" or ".join(known)}, not {need.dtype}; set train.precision'
  return ''


def whole_problem(need: Need) -> str:
  """Refuses a mesh on which devices have parts of sequences."""
  if not need.part:
    return ''
  return (
    'takes whole sequences, and the mesh axis context splits them; take chunked'
  )


def attached_problem(need: Need) -> str:
  """Refuses a GPU that is compiled for without being there."""
  if need.device.attached:
    return ''
  return 'needs a GPU that is present, to ask what it can do; run it on one'


def pallas_problem(need: Need) -> str:
  """Refuses what our own bfloat16 and float32 kernels can't do."""
  problem = '' if need.interpret else gpu_problem(need, AMPERE)
  return problem or dtype_problem(need, 'float32', 'bfloat16')
