"""A step computed twice, to find machines that compute differently.

Some broken chips give wrong bits now and then, without an error (arXiv
2502.12340). On a sound chip a program gives the same bits for the same state
and batch.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from seekax.arrays import PyTree
from seekax.training.state import TrainState


class ReplayError(RuntimeError):
  """The same step gave two results."""


@jax.jit
def _differing(one: PyTree, other: PyTree) -> PyTree:
  """For every array, how many of its values differ in a bit."""

  def count(a, b):
    if a.dtype == jnp.float32:  # Else NaN would differ from itself.
      a, b = (jax.lax.bitcast_convert_type(x, jnp.uint32) for x in (a, b))
    return jnp.sum(a != b)

  return jax.tree.map(count, one, other)


def step_twice(
  step: Callable[..., tuple[TrainState, PyTree]],
  state: TrainState,
  batch: Sequence[PyTree],
  rates: PyTree,
) -> tuple[TrainState, PyTree]:
  """Takes a step on a copy of the state and again on the state itself.

  Args:
    step: function of (state, batch, rates) that returns (state, metrics); it
      may donate the state.
    state: state before the step.
    batch: batch of the step.
    rates: rates of the step.

  Returns:
    (state, metrics) of the second computation.

  Raises:
    ReplayError: the weights differ.
  """
  first, _ = step(jax.tree.map(jnp.copy, state), batch, rates)
  # Before the second step's metrics: they may hold what it donates.
  state, metrics = step(state, batch, rates)
  counts = _differing(first.weights, state.weights)
  wrong = {
    jax.tree_util.keystr(path, simple=True, separator='/'): int(n)
    for path, n in jax.tree_util.tree_leaves_with_path(counts)
    if n
  }
  if wrong:
    name = next(iter(wrong))
    raise ReplayError(
      f'step {int(state.step)} computed twice differs in {len(wrong)} arrays, '
      f'{name} in {wrong[name]} values: this machine does not compute alike '
      'twice; nothing was saved since'
    )
  return state, metrics
