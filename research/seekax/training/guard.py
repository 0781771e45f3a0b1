"""Discards steps whose loss isn't finite, and steps that are spikes.

The decision is part of the compiled step; what it depends on is part of the
state, so that a resumed run decides alike.
"""

from flax import struct
import jax
import jax.numpy as jnp

from seekax.configuration.train import TrainConfig


@struct.dataclass
class Guard:
  """What the decision depends on, kept from step to step.

  Attributes:
    nonfinite_in_a_row: int32, number of latest steps without a finite loss and
      gradient.
    nonfinite: int32, number of such steps in the whole run.
    spikes: int32, number of spikes in the whole run.
    seen: int32, number of finite steps.
    losses_W: float32, the last W losses, in a ring; unused and of size 1 if
      spikes aren't detected.
    norms_W: the last W gradient norms, likewise.
  """

  nonfinite_in_a_row: jax.Array
  nonfinite: jax.Array
  spikes: jax.Array
  seen: jax.Array
  losses_W: jax.Array
  norms_W: jax.Array


def init_guard(train: TrainConfig) -> Guard:
  """The guard before the first step."""
  window = train.spike_window if train.spike_deviations else 1
  # Separate arrays, because a step donates their buffers.
  return Guard(
    *(jnp.zeros((), jnp.int32) for _ in range(4)),
    *(jnp.zeros(window, jnp.float32) for _ in range(2)),
  )


def judge(
  guard: Guard, loss: jax.Array, norm: jax.Array, deviations: float
) -> tuple[jax.Array, Guard]:
  """Decides whether a step is taken.

  It isn't if its loss or gradient norm isn't finite, or if it is a spike: if
  either exceeds its mean in the last W finite steps by more than `deviations`
  standard deviations. Spikes enter this mean like other steps, so that a
  lasting new level soon stops being one.

  Args:
    guard: guard before the step.
    loss: float32 scalar.
    norm: float32 scalar, before clipping.
    deviations: see above; 0 takes every finite step.

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
