"""An exponential moving average of the weights, in host memory.

DeepSeek-V3, section 3.2.3: it foretells the model after the rate's decay, and
takes no room on the devices.
"""

from typing import Any

import jax
import numpy as np

from seekax.config import OptimConfig
from seekax.training.state import TrainState, weights_of


class Average:
  """The mean of the weights seen, those of n steps ago weighing decay^n.

  Attributes:
    tree: {'params', 'router_bias'}, float32 NumPy arrays; before the first
      update the weights that the run begins with.
    updates: how many there were.
  """

  def __init__(self, optim: OptimConfig, tree: Any, updates: int = 0):
    """Begins with weights, or goes on from an average that was saved."""
    self.tree = jax.tree.map(lambda x: np.array(x, np.float32), tree)
    self.updates = updates
    self._every = optim.ema_every
    self._decay = optim.ema_decay**optim.ema_every

  def is_due(self, step: int) -> bool:
    """Whether the state after so many steps is to be taken in."""
    return step % self._every == 0

  def update(self, state: TrainState) -> None:
    """Takes in the weights of now.

    The weights of all updates so far add up to 1 (Adam's correction of its
    bias), so that the first weights are no more than one among others.
    """
    self.updates += 1
    share = (1 - self._decay) / (1 - self._decay**self.updates)
    now = weights_of(state)
    for mean, value in zip(
      jax.tree.leaves(self.tree), jax.tree.leaves(now), strict=True
    ):
      mean += np.float32(share) * (np.asarray(value) - mean)
