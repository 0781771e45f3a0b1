"""What the backward pass keeps of a layer, and what it makes again.

The paper's policy keeps, besides the layer's input and its parameters,

* the down-projections that the MLA norms read,
* what attention gives, with the log-normalisers of its softmax,
* the router's logits and its choices,
* both inputs of every SwiGLU,

and makes the rest again: the norms, the MLA up-projections, what is rotated and
concatenated from them, the SwiGLU (DeepSeek-V3, sections 3.2.3 and 3.3.3).
Each costs little; the queries, keys and values of all heads are by far the
largest thing that a layer would keep.

Names say what to keep, not what to make again: an array that isn't kept would
have its input kept in its place, which is as large.
"""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

# Named where they are made.
NAMES = (
  'query_latent',  # before its norm
  'kv_latent',  # before its norm, with the shared rope key
  'query',  # these three of GQA, MHA and MQA alone, which expand nothing
  'key',
  'value',
  'attention_logits',  # of short sequences, which make them all at once
  'attention_output',
  'attention_log_sum',
  'attention_projected',  # what attention adds to the residual stream
  'router_logits',
  'router_choice',
  'balance_count',
  'swiglu_gate',  # W1 x
  'swiglu_up',  # W3 x
)
# Of primitives that no name can be put into, or that cost much for what they
# give: slots in the order of their experts; the outputs of fused kernels.
_PRIMITIVES = (
  'sort',
  'pallas_call',
  'dot_product_attention_fwd_wrapper',
)

_keep_names = jax.checkpoint_policies.save_only_these_names(*NAMES)


def keep(x: jax.Array, name: str) -> jax.Array:
  """x, which the paper's policy keeps; nothing else changes.

  Raises:
    ValueError: the name isn't one of NAMES, so that it wouldn't be kept.
  """
  if name not in NAMES:
    raise ValueError(f'{name!r} is not one of {", ".join(NAMES)}')
  return checkpoint_name(x, name)


def paper_policy(primitive: Any, *avals: Any, **params: Any) -> bool:
  """For `jax.checkpoint`: whether a primitive's results may be kept."""
  if primitive.name in _PRIMITIVES:
    return True
  return _keep_names(primitive, *avals, **params)
