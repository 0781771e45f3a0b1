"""What a pipeline is made of: its model, its result, and what ranks hold."""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import jax

from seekax.arrays import PyTree


@dataclasses.dataclass(frozen=True)
class Model:
  """The functions that a pipeline runs. Sums are trees without gradients.

  Attributes:
    enter: maps (outer parameters, micro-batch) to the first stage's input x.
    beside: maps (outer parameters, micro-batch) to a tree of the last stage's
      other inputs; the other stages get zeros.
    stages: one function per stage; it maps (the stage's parameters, its
      constants, x, beside, micro-batch) to (x, a tree that leaves, a float32
      scalar that is added to the objective, sums). Equal stages are the same
      function, and the results of all stages have the same shapes.
    leave: maps (outer parameters, what leaves the last stage, micro-batch) to
      (float32 scalar, sums).
  """

  enter: Callable[..., jax.Array]
  beside: Callable[..., PyTree]
  stages: Sequence[Callable[..., tuple[jax.Array, PyTree, jax.Array, PyTree]]]
  leave: Callable[..., tuple[jax.Array, PyTree]]


@dataclasses.dataclass(frozen=True)
class Result:
  """Gradients and sums over all micro-batches.

  Attributes:
    outer: gradients of the outer parameters, float32.
    staged: gradients of the stages' parameters, float32 [S, ...].
    left: sums that `leave` returned.
    passed: sums that each stage returned, [S, ...].
  """

  outer: PyTree
  staged: PyTree
  left: PyTree
  passed: PyTree


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['y', 'dx', 'kept', 'outer', 'staged', 'left', 'passed'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Carry:
  """State that passes from tick to tick.

  Attributes:
    y: outputs of the stages, [S, ...].
    dx: gradients of the stages' inputs, [S, ...].
    kept: inputs of the stages that are used again, [S, S, ...]: a rank has S
      slots, some of them for another stage.
    outer: `Result.outer` so far.
    staged: `Result.staged` so far.
    left: `Result.left` so far.
    passed: `Result.passed` so far.
  """

  y: jax.Array
  dx: jax.Array
  kept: jax.Array
  outer: PyTree
  staged: PyTree
  left: PyTree
  passed: PyTree


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['params', 'constants', 'rank', 'kind'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Rank:
  """The data of one pipeline rank, or of all ranks, [S, ...].

  Attributes:
    params: parameters of its stage.
    constants: constants of its stage.
    rank: number of the rank, which is that of its stage.
    kind: index of its stage's function among the different ones.
  """

  params: PyTree
  constants: PyTree
  rank: jax.Array
  kind: jax.Array
