"""How functions are compiled."""

import functools
from typing import Any

import jax

from seekax.machine.host_memory import return_freed_memory

# Other platforms don't read these. Measured on two AVX-512 cores:
COMPILER_OPTIONS = {
  # Products by Eigen and not by the YNN kernels that XLA took up: up to twice
  # as fast where they are batched (experts, attention), alike elsewhere.
  'xla_cpu_experimental_ynn_fusion_type': '',
  # An eighth less memory for a training step, as fast: what the backward pass
  # computes again waits until then.
  'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
}

# jax.jit with these options; for functions that aren't called inside another.
jit = functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)


def compile_ahead(function: Any, *arguments: Any) -> jax.stages.Compiled:
  """Compiles a jitted function for arguments without running it.

  A call with the same arguments then compiles nothing. What the compiler used
  is given back before the program needs memory of its own: compiling a step of
  18M parameters takes 300 MB.
  """
  compiled = function.lower(*arguments).compile()
  return_freed_memory()
  return compiled
