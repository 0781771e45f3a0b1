"""Gradients of a step whose layers are the stages of a pipeline.

The expert layers are the stages (the dense ones of a model without experts),
filled up to a multiple of their number with layers that change nothing. The
embedding and V3's first, dense layers come before the first stage, final norm,
head and MTP after the last. Every rank of the pipeline computes those, with its
part of the vocabulary and of hidden widths but else all alike, so that their
attention and routed experts add their whole time to every tick. Masters,
gradients, loads and checkpoints have the shapes that they have without a
pipeline.

Letters: S stages, N layers, M micro-batches, B batch, L positions, E experts.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from seekax.config import Config
from seekax.data.pipeline import Batch
from seekax.model import stack
from seekax.model.block import Block
from seekax.model.experts import Load
from seekax.model.parameters import cast_params
from seekax.model.transformer import LAYERS, Transformer
from seekax.ops import precision
from seekax.parallel import pipeline, ranks, rules
from seekax.parallel.mesh import current_sizes
from seekax.training import placement
from seekax.training.losses import balance_objective, LossSums, target_sums


def pipelined_gradients(
  params: Any,
  router_bias: dict[str, jax.Array],
  batch: Sequence[Batch],
  config: Config,
  mtp_weight: jax.Array | float,
) -> tuple[Any, LossSums]:
  """What `losses.loss_sums` and its gradient are over all micro-batches.

  Args:
    params: float32 masters.
    router_bias: selection biases.
    batch: micro-batches of one shape.
    config: the run.
    mtp_weight: lambda of this step.

  Returns:
    (float32 gradients, laid out as masters; LossSums).
  """
  policy = precision.for_training(config)
  dtype = jnp.dtype(config.train.compute_dtype)
  name = stack.pipelined_stack(config.model)
  stages = current_sizes()[pipeline.AXIS]
  length = stack.num_layers(params[name])
  weights = cast_params(params, dtype, policy)
  staged = placement.as_stages(weights.pop(name), config.model, stages)
  constants = {'there': pipeline.padded(jnp.ones(length, bool), stages)}
  if config.model.uses_experts:
    bias_NE = router_bias.get(
      LAYERS, jnp.zeros((length, config.model.num_experts))
    )
    constants['bias'] = pipeline.padded(bias_NE, stages)
  micro_batches = jax.tree.map(
    lambda *parts: rules.constrain(jnp.stack(parts), None, 'batch', 'length'),
    *batch,
  )
  outer = placement.as_shared_weights(weights, config.model)
  names = placement.names_of_shared(outer, config.model, current_sizes())
  of_stages = placement.names_of_stages(config.model)

  def of_rank(outer, staged, constants, bias, micro_batches, mtp_weight):
    result = pipeline.gradients(
      _model(config, bias, mtp_weight, policy),
      outer,
      staged,
      constants,
      micro_batches,
      lambda *partial: ranks.as_partial(partial, (names, of_stages)),
    )
    return (result.outer, result.staged), (result.left, result.passed)

  whole = rules.axes()
  run = ranks.apart(
    of_rank,
    (
      names,
      of_stages,
      whole,
      whole,
      rules.axes(None, 'batch', 'length'),
      whole,
    ),
    (names, of_stages),
  )
  partial, (left, passed) = run(
    outer, staged, constants, router_bias, micro_batches, mtp_weight
  )
  gradients, staged_gradients = ranks.summed(
    partial, (placement.names_of(outer, config.model), of_stages)
  )
  gradients[name], passed = jax.tree.map(
    lambda x: pipeline.unpadded(x, length), (staged_gradients, passed)
  )
  gradients = placement.as_masters(gradients, config.model)
  return gradients, _joined(left, passed)


def _model(config: Config, router_bias, mtp_weight, policy) -> pipeline.Model:
  model = Transformer(config.model, policy)
  layer = Block(config.model, config.model.uses_experts, policy, parent=None)
  dense_first = config.model.uses_experts and config.model.num_plain_layers

  def shared(batch):
    isolate = config.data.isolate_documents
    return batch.positions_BL, batch.segments_BL if isolate else None

  def enter(weights, batch):
    variables = {'params': weights}
    x_BLD = model.apply(variables, batch.tokens_BL, method='embed')
    if dense_first:
      x_BLD, _ = model.apply(
        variables, x_BLD, *shared(batch), method='run_dense'
      )
    return x_BLD

  def stage(weights, constants, x_BLD, batch):
    x_BLD, load = stack.run_some(
      layer,
      weights,
      constants.get('bias'),
      constants['there'],
      x_BLD,
      shared(batch),
    )
    if load is None:
      return x_BLD, jnp.zeros((), jnp.float32), None
    objective = balance_objective(config, load.balance.sum(), batch)
    return x_BLD, objective, load

  def leave(weights, x_BLD, batch):
    variables = {'params': weights}
    hidden_BLD = model.apply(variables, x_BLD, method='normed')
    return target_sums(
      model, weights, hidden_BLD, None, router_bias, batch, config, mtp_weight
    )

  return pipeline.Model(enter, stage, leave)


def _joined(left: LossSums, passed: Load | None) -> LossSums:
  """The sums of what left the pipeline with the loads of its layers."""
  if passed is None:
    return left
  return left.replace(
    balance=left.balance + passed.balance.sum(),
    rounds=left.rounds + passed.rounds.sum(),
    exchanges=left.exchanges + passed.exchanges.sum(),
    load={LAYERS: passed.count_E} | left.load,
  )
