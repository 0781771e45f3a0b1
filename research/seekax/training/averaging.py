"""An exponential moving average of the weights, in host memory.

DeepSeek-V3, section 3.2.3: the average predicts how good the model will be
after its learning rate has decayed, and takes no memory on the devices.
"""

import jax
import numpy as np

from seekax.configuration.optim import OptimConfig
from seekax.model.weights import Weights
from seekax.training.state import TrainState


class Average:
  """The mean of all weights so far; those of n steps ago have weight decay^n.

  Attributes:
    updates: number of updates so far.
  """

  def __init__(self, optim: OptimConfig, weights: Weights, updates: int = 0):
    """Starts with weights, or with a saved average.

    Args:
      optim: gives the decay.
      weights: the weights or the saved average to start with.
      updates: number of updates in a saved average.
    """
    self._means = jax.tree.map(_mean_of, weights)
    self.updates = updates
    self._every = optim.ema_every
    self._decay = optim.ema_decay**optim.ema_every

  @property
  def weights(self) -> Weights:
    """The average, float32; before the first update, the initial weights.

    They are NumPy arrays or, where several processes have a part each, arrays
    on their devices.
    """
    return jax.tree.map(lambda mean: mean.array(), self._means)

  def is_due(self, step: int) -> bool:
    """Whether the average includes the state after this step."""
    return step % self._every == 0

  def update(self, state: TrainState) -> None:
    """Adds the current weights to the average.

    The weights of all updates add up to 1 (Adam's bias correction), so that the
    first update counts no more than the others.
    """
    self.updates += 1
    share = (1 - self._decay) / (1 - self._decay**self.updates)
    for mean, value in zip(
      jax.tree.leaves(self._means),
      jax.tree.leaves(state.weights),
      strict=True,
    ):
      mean.add(np.float32(share), value)


def _mean_of(x: jax.Array) -> '_Whole | _Spread':
  return _Whole(x) if getattr(x, 'is_fully_addressable', True) else _Spread(x)


class _Whole:
  """The mean of an array that this process has whole."""

  def __init__(self, x: jax.Array):
    self._mean = np.array(x, np.float32)

  def add(self, share: np.float32, x: jax.Array) -> None:
    self._mean += share * (np.asarray(x) - self._mean)

  def array(self) -> np.ndarray:
    return self._mean


class _Spread:
  """The mean of the parts of an array that are on this process's devices."""

  def __init__(self, x: jax.Array):
    self._sharding, self._shape = x.sharding, x.shape
    self._parts = {
      shard.device: np.array(shard.data, np.float32)
      for shard in x.addressable_shards
    }

  def add(self, share: np.float32, x: jax.Array) -> None:
    for shard in x.addressable_shards:
      mean = self._parts[shard.device]
      mean += share * (np.asarray(shard.data) - mean)

  def array(self) -> jax.Array:
    return jax.make_array_from_single_device_arrays(
      self._shape,
      self._sharding,
      [jax.device_put(part, device) for device, part in self._parts.items()],
    )
