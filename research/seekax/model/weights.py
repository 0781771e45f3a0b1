"""The weights of a model, as one record."""

from flax import struct
import jax

from seekax.arrays import PyTree


@struct.dataclass
class Weights:
  """Parameters and router biases.

  They are separate because the optimizer, weight decay and clipping never see
  the biases, which stay float32 for any compute dtype.

  Attributes:
    params: tree of the parameters.
    router_bias: {'layers': float32 [N, E], 'mtp': [J, E]}; {} without biases.
  """

  params: PyTree
  router_bias: dict[str, jax.Array]

  @property
  def tree(self) -> dict[str, PyTree]:
    """Both as nested dicts, as they are stored."""
    return {'params': self.params, 'router_bias': self.router_bias}
