"""Options with which functions are compiled."""

import functools
from typing import Any

import jax

from seekax.arrays import PyTree
from seekax.machine.host_memory import return_freed_memory

# Other platforms ignore these. Measured on two AVX-512 cores:
COMPILER_OPTIONS = {
  # Products use Eigen instead of XLA's newer YNN kernels: up to twice as fast
  # where they are batched (experts, attention), equal elsewhere.
  'xla_cpu_experimental_ynn_fusion_type': '',
  # A training step takes an eighth less memory in the same time: the backward
  # pass recomputes values no earlier than it needs them.
  'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
}

# jax.jit with these options; for functions that aren't called inside another.
jit = functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)


def setting(name: str) -> Any:
  """An option of `jax.config`, which declares none of them to type checkers."""
  return getattr(jax.config, name)


def compile_ahead(
  function: jax.stages.Wrapped, *arguments: PyTree
) -> jax.stages.Compiled:
  """Compiles a jitted function for arguments without running it.

  A call with the same arguments then compiles nothing. The compiler's memory is
  freed before the program needs its own: compiling a step of 18M parameters
  takes 300 MB.
  """
  compiled = function.lower(*arguments).compile()
  return_freed_memory()
  return compiled
