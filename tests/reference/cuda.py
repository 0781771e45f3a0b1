"""Lowering for an NVIDIA GPU on a machine that has none."""

import unittest

import jax


def lowered(function, *shapes) -> str:
  """The program for CUDA as text, with kernels in Triton's dialect.

  Raises:
    unittest.SkipTest: this jaxlib compiles kernels as it lowers, and has no
      compiler for them without its CUDA plugin.
  """
  traced = jax.jit(function).trace(*shapes)
  try:
    return traced.lower(lowering_platforms=('cuda',)).as_text()
  except Exception as error:
    if 'handler' in str(error).lower() or 'plugin' in str(error).lower():
      raise unittest.SkipTest(f'no compiler of kernels: {error}') from error
    raise
