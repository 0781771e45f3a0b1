"""The precision of a model's linear maps, as a policy handed to their products.

Under `fp8`, every linear map in attention and the FFNs is in block FP8; the
embedding, the head, the router, the norms, the attention core and the
projection of an MTP module are not (DeepSeek-V3, section 3.3.1).
"""

import dataclasses

from seekax.configuration.config import Config
from seekax.configuration.fp8 import Fp8Config
from seekax.ops.block_fp8_products import Fp8Products
from seekax.ops.linear import PLAIN, PLAIN_SWIGLU, Products, SwigluProducts


@dataclasses.dataclass(frozen=True)
class Policy:
  """How the linear maps of a layer are multiplied.

  Attributes:
    linear: attention's linear maps except the output projection.
    after_attention: attention's output projection.
    ffn: dense FFNs and shared experts.
    routed: routed experts.
    reads_masters: modules whose matrices stay float32 in a bfloat16 model: they
      are quantised from the masters, and their gradients are float32.
  """

  linear: Products = PLAIN
  after_attention: Products = PLAIN
  ffn: SwigluProducts = PLAIN_SWIGLU
  routed: SwigluProducts = PLAIN_SWIGLU
  reads_masters: tuple[str, ...] = ()


HIGH = Policy()


def fp8(recipe: Fp8Config) -> Policy:
  """Block FP8, with scales that are powers of two where V3 has them.

  V3 has them for the inputs of the projection after attention and of the routed
  experts' up-projections, and for the gradients that enter their
  down-projections: what is stored or sent as FP8 and tiled again later.
  """
  products = Fp8Products(recipe)
  stored = Fp8Products(recipe, power_of_two_input=True)
  combined = Fp8Products(recipe, power_of_two_gradient=True)
  return Policy(
    linear=products,
    after_attention=stored,
    ffn=SwigluProducts(products, products),
    routed=SwigluProducts(stored, combined),
    reads_masters=('attention', 'mlp', 'experts'),
  )


def for_training(config: Config) -> Policy:
  """The policy of train.precision; evaluation and inference use HIGH."""
  return fp8(config.fp8) if config.train.precision == 'fp8' else HIGH
