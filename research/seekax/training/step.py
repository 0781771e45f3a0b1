"""The training step: accumulate a micro-batch, apply an update.

Both are pure. With several micro-batches each is a program of its own, with one
they are compiled together, so that gradients never outlive a program and every
step asks the allocator for the same.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from seekax.config import Config
from seekax.data.pipeline import Batch
from seekax.ops import compiling
from seekax.training.balance import max_violation, update_bias
from seekax.training.losses import loss_sums, LossSums
from seekax.training.optimizer import make_optimizer, mean_and_clip
from seekax.training.schedules import learning_rate
from seekax.training.state import TrainState


@struct.dataclass
class Accumulated:
  """Float32 gradient of the objective's sum, and the sums so far."""

  gradients: Any
  sums: LossSums


@struct.dataclass
class Metrics:
  """What a step reports. Losses in nats per token.

  Attributes:
    loss: main loss.
    mtp_loss: mean over depths, 0 without MTP.
    balance_loss: sequence-wise balance, mean over sequences and routers; 1 is
      perfect balance. 0 without experts.
    z_loss: of the main targets, weighted as in the objective; 0 without.
    gradient_norm: before clipping.
    learning_rate: of this step.
    load: choices per expert, {'layers': [N, E], 'mtp': [J, E]}.
    max_violation: {'layers': [N], 'mtp': [J]}.
  """

  loss: jax.Array
  mtp_loss: jax.Array
  balance_loss: jax.Array
  z_loss: jax.Array
  gradient_norm: jax.Array
  learning_rate: jax.Array
  load: dict[str, jax.Array]
  max_violation: dict[str, jax.Array]


def _accumulate(
  config: Config,
  state: TrainState,
  batch: Batch,
  so_far: Accumulated | None = None,
) -> Accumulated:
  """Adds a micro-batch's gradient and sums to those so far."""
  gradients, sums = jax.grad(loss_sums, has_aux=True)(
    state.params, state.router_bias, batch, config
  )
  new = Accumulated(gradients, sums)
  if so_far is None:
    return new
  return jax.tree.map(jnp.add, so_far, new)


def _apply(
  config: Config, state: TrainState, accumulated: Accumulated
) -> tuple[TrainState, Metrics]:
  """One optimizer update and one move of the router bias."""
  sums = accumulated.sums
  gradients, norm = mean_and_clip(
    accumulated.gradients, sums.tokens, config.optim.clip_norm
  )
  updates, opt_state = make_optimizer(config).update(
    gradients, state.opt_state, state.params
  )
  bias = {
    key: update_bias(value, sums.load[key], config.train.bias_update_rate)
    for key, value in state.router_bias.items()
  }
  new_state = TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    router_bias=bias,
    opt_state=opt_state,
  )
  routers = sum(load.shape[0] for load in sums.load.values())
  metrics = Metrics(
    loss=sums.main / sums.tokens,
    mtp_loss=sums.mtp.sum() / (sums.tokens * max(sums.mtp.shape[0], 1)),
    balance_loss=sums.balance / (sums.sequences * max(routers, 1)),
    z_loss=config.train.z_loss_weight * sums.squared_log_z / sums.tokens,
    gradient_norm=norm,
    learning_rate=learning_rate(state.step, config.optim, config.train.steps),
    load=sums.load,
    max_violation=jax.tree.map(max_violation, sums.load),
  )
  return new_state, metrics


def micro_batch(batch: Batch, part: int, parts: int) -> Batch:
  """Every parts-th row, so that a part has its share of every data shard."""
  return jax.tree.map(lambda x: x[part::parts], batch) if parts > 1 else batch


def _whole_step(
  config: Config, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
  """One update from a batch in one part."""
  return _apply(config, state, _accumulate(config, state, batch))


accumulate = compiling.jit(
  _accumulate, static_argnums=(0,), donate_argnums=(3,)
)
apply = compiling.jit(_apply, static_argnums=(0,), donate_argnums=(1,))
whole_step = compiling.jit(
  _whole_step, static_argnums=(0,), donate_argnums=(1,)
)


def compile_ahead(config: Config, state: TrainState, batch: Batch) -> None:
  """Compiles the costly program, so that memory peaks less in the first step.

  Args:
    config: the run.
    state: of the first step.
    batch: of the first step.
  """
  parts = config.train.micro_batches
  if parts == 1:
    compiling.compile_ahead(whole_step, config, state, batch)
    return
  part = micro_batch(batch, 0, parts)
  compiling.compile_ahead(accumulate, config, state, part, None)


def train_step(
  config: Config, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
  """One step on a global batch, in `train.micro_batches` parts.

  The update doesn't depend on the number of parts: gradients are sums, divided
  once by the targets of the whole batch, and the bias moves by its whole load.

  Args:
    config: the run, validated.
    state: donated; don't use it afterwards.
    batch: B = data.batch_size sequences.

  Returns:
    (the new state, metrics still on the device).
  """
  parts = config.train.micro_batches
  if parts == 1:
    return whole_step(config, state, batch)
  accumulated = None
  for part in range(parts):
    accumulated = accumulate(
      config, state, micro_batch(batch, part, parts), accumulated
    )
  return apply(config, state, accumulated)
