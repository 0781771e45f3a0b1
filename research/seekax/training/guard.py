"""Which steps are thrown away: losses that are no numbers, and spikes.

The decision is part of the compiled step; what it remembers is part of the
state, so that a run that goes on decides alike.
"""

from flax import struct
import jax
import jax.numpy as jnp

from seekax.configuration.train import TrainConfig


@struct.dataclass
class Guard:
  """What is remembered between steps.

  Attributes:
    nonfinite_in_a_row: int32, steps without a finite loss and gradient, up to
      now.
    nonfinite: int32, of the whole run.
    spikes: int32, of the whole run.
    seen: int32, finite steps.
    losses_W: float32, the last ones, in a ring; unused, and of one place, if no
      step is a spike.
    norms_W: gradient norms.
  """

  nonfinite_in_a_row: jax.Array
  nonfinite: jax.Array
  spikes: jax.Array
  seen: jax.Array
  losses_W: jax.Array
  norms_W: jax.Array


def init_guard(train: TrainConfig) -> Guard:
  """Before the first step."""
  window = train.spike_window if train.spike_deviations else 1
  # Arrays of their own: a step takes their buffers.
  return Guard(
    *(jnp.zeros((), jnp.int32) for _ in range(4)),
    *(jnp.zeros(window, jnp.float32) for _ in range(2)),
  )


def judge(
  guard: Guard, loss: jax.Array, norm: jax.Array, deviations: float
) -> tuple[jax.Array, Guard]:
  """Whether a step is taken.

  One whose loss or gradient norm is not finite isn't. Nor is a spike: either of
  them more than `deviations` standard deviations above the mean of the last W
  finite steps. A spike is remembered like any other step, so that a new level
  is one only for a while.

  Args:
    guard: before the step.
    loss: float32 scalar.
    norm: float32 scalar, before clipping.
    deviations: 0 takes every finite step.

  Returns:
    (bool scalar, the guard after the step).
  """
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  spike = jnp.zeros((), bool)
  losses_W, norms_W = guard.losses_W, guard.norms_W
  if deviations:
    window = losses_W.shape[0]
    full = guard.seen >= window
    spike = (
      finite
      & full
      & (_above(loss, losses_W, deviations) | _above(norm, norms_W, deviations))
    )
    place = guard.seen % window
    losses_W = losses_W.at[place].set(jnp.where(finite, loss, losses_W[place]))
    norms_W = norms_W.at[place].set(jnp.where(finite, norm, norms_W[place]))
  in_a_row = jnp.where(finite, 0, guard.nonfinite_in_a_row + 1)
  after = Guard(
    nonfinite_in_a_row=in_a_row.astype(jnp.int32),
    nonfinite=guard.nonfinite + ~finite,
    spikes=guard.spikes + spike,
    seen=guard.seen + finite,
    losses_W=losses_W,
    norms_W=norms_W,
  )
  return finite & ~spike, after


def _above(value, last_W, deviations):
  return value > last_W.mean() + deviations * last_W.std()
