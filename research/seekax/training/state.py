"""The training state: step, float32 masters, router bias, optimizer.

The router bias is state, not a parameter: the optimizer, weight decay and
clipping never see it, and it stays float32 for any compute dtype.
"""

import functools
import inspect

from flax import struct
import jax
import jax.numpy as jnp

from seekax.arrays import PyTree
from seekax.configuration.config import Config
from seekax.model.parameters import abstract_weights, init_weights
from seekax.model.weights import Weights
from seekax.training.guard import Guard, init_guard
from seekax.training.optimizer import make_optimizer


@struct.dataclass
class TrainState:
  """Everything that an optimizer step changes.

  Attributes:
    step: int32, number of optimizer steps taken.
    params: float32 master weights.
    router_bias: {'layers': float32 [N, E], 'mtp': [J, E]}; {} without biases.
    opt_state: state of the optimizer.
    guard: decides which steps are discarded.
  """

  step: jax.Array
  params: PyTree
  router_bias: dict[str, jax.Array]
  opt_state: PyTree
  guard: Guard

  @property
  def weights(self) -> Weights:
    """The model's weights, without the optimizer."""
    return Weights(self.params, self.router_bias)


@functools.partial(jax.jit, static_argnums=(0,))
def init_state(config: Config) -> TrainState:
  """The state at step 0; compiled, because that is much faster."""
  return start_from(config, init_weights(config.model, config.train.seed))


def init_state_on(config: Config, shardings: PyTree) -> TrainState:
  """The state at step 0, with each part made on its device."""
  if len(shardings.step.device_set) == 1:
    return jax.device_put(init_state(config), shardings)
  make = jax.jit(
    inspect.unwrap(init_state), static_argnums=(0,), out_shardings=shardings
  )
  return make(config)


def start_from(config: Config, weights: Weights) -> TrainState:
  """The state at step 0 with these weights and a fresh optimizer."""
  init_optimizer = jax.jit(make_optimizer(config.optim).init)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=weights.params,
    router_bias=weights.router_bias,
    opt_state=init_optimizer(weights.params),
    guard=init_guard(config.train),
  )


def abstract_state(config: Config) -> TrainState:
  """Shapes and dtypes of a run's state; nothing is computed."""
  return jax.eval_shape(
    lambda weights: start_from(config, weights),
    abstract_weights(config.model),
  )


def to_parts(
  state: TrainState, average: Weights | None = None
) -> dict[str, PyTree]:
  """Splits the state into stored parts; weights load without the optimizer.

  Args:
    state: the state.
    average: averaged weights, if there are any.
  """
  averaged = {} if average is None else {'ema': average.tree}
  return averaged | {
    'weights': state.weights.tree,
    'optimizer': {
      'step': state.step,
      'opt_state': state.opt_state,
      'guard': state.guard,
    },
  }


def from_parts(parts: dict[str, PyTree]) -> TrainState:
  """The inverse of to_parts, without the averaged weights."""
  return TrainState(
    step=parts['optimizer']['step'],
    params=parts['weights']['params'],
    router_bias=parts['weights']['router_bias'],
    opt_state=parts['optimizer']['opt_state'],
    guard=parts['optimizer']['guard'],
  )
