"""The training step: accumulate a micro-batch, apply an update.

`one_device_step` is the whole step on one device; read it first. `train_step`
computes the same on any mesh and from any number of micro-batches. With several
each part is a program of its own. With one they are compiled together, so that
gradients never outlive a program and every step allocates the same memory. In a
pipeline all micro-batches of a step and its update are one program.

On a mesh, weights are gathered from their masters once per step, and the update
sums gradients over the ranks of the batch once.
"""

from collections.abc import Sequence

from flax import struct
import jax
import jax.numpy as jnp

from seekax.arrays import PyTree
from seekax.configuration.config import Config
from seekax.data.pipeline import Batch
from seekax.machine import compiling
from seekax.model.parameters import abstract_weights
from seekax.model.weights import Weights
from seekax.parallel import ranks, rules
from seekax.parallel.mesh import current_sizes
from seekax.training import placement
from seekax.training.balance import max_violation, update_bias
from seekax.training.guard import judge
from seekax.training.losses import (
  compute_weights,
  loss_sums,
  LossSums,
  sums_of_weights,
  zero_sums,
)
from seekax.training.optimizer import make_optimizer, mean_and_clip
from seekax.training.pipelined import pipelined_gradients
from seekax.training.schedules import Rates
from seekax.training.state import TrainState


@struct.dataclass
class Accumulated:
  """The gradient of the objective's sum, and the sums so far.

  Attributes:
    gradients: float32 partial sums of the batch's ranks (`ranks`), which the
      update sums over the ranks.
    sums: sums over all ranks.
  """

  gradients: PyTree
  sums: LossSums


@struct.dataclass
class Metrics:
  """What a step reports; losses are in nats per token.

  Attributes:
    loss: main loss.
    mtp_loss: mean over depths, 0 without MTP.
    balance_loss: sequence-wise balance, mean over sequences and routers; 1 is
      perfect balance. 0 without experts.
    z_loss: z-loss of the main targets, weighted as in the objective; 0 without.
    gradient_norm: norm before clipping.
    learning_rate: learning rate of this step.
    taken: whether the step changed anything except the position in the data.
    nonfinite_in_a_row: number of latest steps without a finite loss and
      gradient.
    spikes: number of steps discarded as spikes so far.
    exchange_rounds: rounds of an exchange of tokens between devices, mean over
      routers and micro-batches; 1 near balance and on one device, 0 without
      experts.
    load: number of choices per expert, {'layers': [N, E], 'mtp': [J, E]}.
    max_violation: {'layers': [N], 'mtp': [J]}.
  """

  loss: jax.Array
  mtp_loss: jax.Array
  balance_loss: jax.Array
  z_loss: jax.Array
  gradient_norm: jax.Array
  learning_rate: jax.typing.ArrayLike
  taken: jax.Array
  nonfinite_in_a_row: jax.Array
  spikes: jax.Array
  exchange_rounds: jax.Array
  load: dict[str, jax.Array]
  max_violation: dict[str, jax.Array]


def one_device_step(
  config: Config, state: TrainState, batch: Batch, rates: Rates
) -> tuple[TrainState, Metrics]:
  """One step on one device; pure, so that it can be compiled or scanned.

  The loss's sums (equation 24, and the balance loss of equation 17), their
  gradient, and the update: clipping, AdamW or Muon, and the bias rule of the
  router (section 2.1.2), which is outside the gradient.

  Args:
    config: the run's validated config.
    state: state before the step.
    batch: the whole batch.
    rates: rates of this step (`schedules.Schedule`).

  Returns:
    (the new state, metrics).
  """

  def objective(params):
    weights = Weights(params, state.router_bias)
    return loss_sums(weights, batch, config, rates.mtp_weight)

  gradients, sums = jax.grad(objective, has_aux=True)(state.params)
  return _update(config, state, gradients, sums, rates)


def _accumulate(
  config: Config,
  state: TrainState,
  batch: Batch,
  rates: Rates,
  so_far: Accumulated | None = None,
  weights: PyTree = None,
) -> Accumulated:
  """Adds a micro-batch's gradient and sums to those so far.

  Args:
    config: the run's config.
    state: state at the start of the step.
    batch: the micro-batch.
    rates: rates of the step.
    so_far: donated; None for a micro-batch that is the whole batch.
    weights: result of `gather`; None to compute them from the state.

  Returns:
    The sums with this micro-batch.
  """

  def of_rank(params, bias, batch, mtp_weight):
    def objective(params):
      weights = Weights(params, bias)
      return sums_of_weights(weights, batch, config, mtp_weight)

    gradients, sums = jax.grad(objective, has_aux=True)(params)
    return jax.tree.map(lambda x: x.astype(jnp.float32), gradients), sums

  names = placement.names_of(state.params, config.model)
  tokens, whole = rules.axes('batch', 'length'), rules.axes()
  run = ranks.apart(of_rank, (names, whole, tokens, whole), names)
  if weights is None:
    weights = compute_weights(state.params, config)
  new = Accumulated(*run(weights, state.router_bias, batch, rates.mtp_weight))
  if so_far is None:
    return new
  return jax.tree.map(jnp.add, so_far, new)


def _apply(
  config: Config, state: TrainState, accumulated: Accumulated, rates: Rates
) -> tuple[TrainState, Metrics]:
  """The update from what the ranks of the batch have accumulated."""
  names = placement.names_of(state.params, config.model)
  gradients = ranks.summed(accumulated.gradients, names)
  return _update(config, state, gradients, accumulated.sums, rates)


def _update(
  config: Config,
  state: TrainState,
  gradients: PyTree,
  sums: LossSums,
  rates: Rates,
) -> tuple[TrainState, Metrics]:
  """One optimizer update and one bias update, or neither."""
  gradients, norm = mean_and_clip(
    gradients, sums.tokens, config.optim.clip_norm
  )
  loss = sums.main / sums.tokens
  taken, guard = judge(state.guard, loss, norm, config.train.spike_deviations)
  directions, opt_state = make_optimizer(config.optim).update(
    gradients, state.opt_state, state.params
  )
  params = jax.tree.map(
    lambda x, direction: x - rates.learning_rate * direction,
    state.params,
    directions,
  )
  bias = {
    key: update_bias(
      value,
      sums.load[key],
      rates.bias_update_rate,
    )
    for key, value in state.router_bias.items()
  }
  params, bias, opt_state = jax.tree.map(
    lambda new, old: jnp.where(taken, new, old),
    (params, bias, opt_state),
    (state.params, state.router_bias, state.opt_state),
  )
  new_state = TrainState(
    step=state.step + 1,
    params=params,
    router_bias=bias,
    opt_state=opt_state,
    guard=guard,
  )
  routers = sum(load.shape[0] for load in sums.load.values())
  metrics = Metrics(
    loss=loss,
    mtp_loss=sums.mtp.sum() / (sums.tokens * max(sums.mtp.shape[0], 1)),
    balance_loss=sums.balance / (sums.sequences * max(routers, 1)),
    z_loss=config.train.z_loss_weight * sums.squared_log_z / sums.tokens,
    gradient_norm=norm,
    learning_rate=rates.learning_rate,
    taken=taken,
    nonfinite_in_a_row=guard.nonfinite_in_a_row,
    spikes=guard.spikes,
    exchange_rounds=sums.rounds / jnp.maximum(sums.exchanges, 1),
    load=sums.load,
    max_violation=jax.tree.map(max_violation, sums.load),
  )
  # Replicated, so that every process can read them.
  metrics = jax.tree.map(
    lambda x: rules.constrain(x, *[None] * x.ndim), metrics
  )
  return new_state, metrics


def _nothing(config: Config) -> Accumulated:
  """Sums before the first micro-batch."""
  params = abstract_weights(config.model).params
  names = placement.names_of(params, config.model)
  return Accumulated(ranks.zeros(params, names), zero_sums(config.model))


def _whole_step(
  config: Config, state: TrainState, batch: Batch, rates: Rates
) -> tuple[TrainState, Metrics]:
  """One update from a batch that isn't divided."""
  accumulated = _accumulate(config, state, batch, rates)
  return _apply(config, state, accumulated, rates)


def _pipelined_step(
  config: Config, state: TrainState, batch: Sequence[Batch], rates: Rates
) -> tuple[TrainState, Metrics]:
  """One update from micro-batches that pass through a pipeline together."""
  gradients, sums = pipelined_gradients(
    state.weights, batch, config, rates.mtp_weight
  )
  return _update(config, state, gradients, sums, rates)


nothing = compiling.jit(_nothing, static_argnums=(0,))
# Casts and gathers the weights for all micro-batches of a step.
gather = compiling.jit(compute_weights, static_argnums=(1,))
accumulate = compiling.jit(
  _accumulate, static_argnums=(0,), donate_argnums=(4,)
)
apply = compiling.jit(_apply, static_argnums=(0,), donate_argnums=(1,))
whole_step = compiling.jit(
  _whole_step, static_argnums=(0,), donate_argnums=(1,)
)

pipelined_step = compiling.jit(
  _pipelined_step, static_argnums=(0,), donate_argnums=(1,)
)


def compile_ahead(
  config: Config, state: TrainState, batch: Sequence[Batch], rates: Rates
) -> None:
  """Compiles everything that steps need, also those of a larger batch.

  Memory then peaks less in the first step, and a batch ramp compiles nothing
  later, except in a pipeline, where the number of micro-batches is part of the
  program.

  Args: as for train_step, for the first step.
  """
  if 'pipeline' in current_sizes():
    compiling.compile_ahead(pipelined_step, config, state, batch, rates)
    return
  if config.train.micro_batches == 1:
    compiling.compile_ahead(whole_step, config, state, batch[0], rates)
    return
  weights = None
  if ranks.rank_axes():
    weights = _outputs(compiling.compile_ahead(gather, state.params, config))
  arguments = config, state, batch[0], rates
  so_far = _outputs(compiling.compile_ahead(nothing, config))
  compiling.compile_ahead(accumulate, *arguments, so_far, weights)
  compiling.compile_ahead(apply, config, state, so_far, rates)


def _outputs(program: jax.stages.Compiled) -> PyTree:
  """Shapes and shardings of a program's results."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    program.out_info,
    program.output_shardings,
  )


def train_step(
  config: Config, state: TrainState, batch: Sequence[Batch], rates: Rates
) -> tuple[TrainState, Metrics]:
  """One step on a global batch, in one or more micro-batches.

  The update doesn't depend on the number of parts: gradients are sums, divided
  once by the targets of the whole batch, and the bias update uses its whole
  load.

  Args:
    config: the run's validated config.
    state: donated; don't use it afterwards.
    batch: micro-batches, each of data.batch_size / train.micro_batches
      sequences; fewer than that in a batch ramp.
    rates: rates of this step (`schedules.Schedule`).

  Returns:
    (the new state, metrics still on the device).
  """
  if 'pipeline' in current_sizes():
    return pipelined_step(config, state, batch, rates)
  if config.train.micro_batches == 1:
    return whole_step(config, state, batch[0], rates)
  accumulated, weights = nothing(config), None
  if ranks.rank_axes():
    # Once for all micro-batches, which then needn't wait for each other.
    weights = gather(state.params, config)
  for part in batch:
    accumulated = accumulate(config, state, part, rates, accumulated, weights)
  del weights
  return apply(config, state, accumulated, rates)
