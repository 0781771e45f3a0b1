"""Learning rate by step: linear warm-up, constant, cosine, final."""

import jax
import jax.numpy as jnp

from seekax.config import OptimConfig


def learning_rate(
  step: jax.Array | int, optim: OptimConfig, steps: int
) -> jax.Array:
  """The rate of an optimizer step.

  Args:
    step: steps taken before this one; the first has 0 and a rate above 0.
    optim: peak and final rate, lengths of the phases in steps.
    steps: steps of the whole run, where the cosine ends if decay_steps is 0.

  Returns:
    float32 scalar.
  """
  step = jnp.asarray(step, jnp.float32)
  decay_start = optim.warmup_steps + optim.constant_steps
  decay_steps = optim.decay_steps or max(steps - decay_start, 1)
  warmup = jnp.minimum((step + 1) / max(optim.warmup_steps, 1), 1.0)
  progress = jnp.clip((step - decay_start) / decay_steps, 0.0, 1.0)
  peak, final = optim.learning_rate, optim.final_learning_rate
  decayed = final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
  return warmup * decayed
