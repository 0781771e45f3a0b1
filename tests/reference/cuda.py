"""Lowering for an NVIDIA GPU on a machine that has none."""

from collections.abc import Callable
import warnings

import jax
from jax._src.pallas.triton import lowering
from jaxlib.mlir import ir

_CALL = '__gpu$xla.gpu.triton'
_HOPPER = 'NVIDIA H100 80GB HBM3'


def kernels(function: Callable, *shapes: jax.ShapeDtypeStruct) -> list[str]:
  """The Triton kernels of a function, each parsed again and so verified.

  JAX writes a kernel down without checking it; XLA checks on compiling, which
  takes the CUDA libraries.

  Returns:
    Each call's kernel as text, in no order.
  """
  device = jax.sharding.AbstractDevice(_HOPPER, 132, platform='cuda')
  mesh = jax.sharding.AbstractMesh(
    (1,),
    ('device',),
    axis_types=(jax.sharding.AxisType.Auto,),
    abstract_device=device,
  )
  with jax.sharding.use_abstract_mesh(mesh), warnings.catch_warnings():
    # jax 0.12 says that it will drop Pallas for Triton one day.
    warnings.filterwarnings('ignore', '.*Triton', DeprecationWarning)
    traced = jax.jit(function).trace(*shapes)
    lowered = traced.lower(lowering_platforms=('cuda',))
  found = []

  def visit(operation):
    if (
      operation.name == 'stablehlo.custom_call'
      and operation.attributes['call_target_name'].value == _CALL
    ):
      config = operation.attributes['mhlo.backend_config']
      found.append(config['ir'].value_bytes)
    return ir.WalkResult.ADVANCE

  module = lowered.compiler_ir()
  assert module
  module.operation.walk(visit)
  texts = []
  for code in found:
    with lowering._new_ir_context(), ir.Location.unknown():
      module = ir.Module.parse(code)
      module.operation.verify()
      texts.append(str(module))
  return texts
