"""How functions are compiled."""

import functools

import jax

# On a CPU, products by Eigen and not by the YNN kernels that XLA took up: up to
# twice as fast on two AVX-512 cores (batched products of experts and attention;
# single large ones are alike). Other platforms don't read the option.
COMPILER_OPTIONS = {'xla_cpu_experimental_ynn_fusion_type': ''}

# jax.jit with these options; for functions that aren't called inside another.
jit = functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
