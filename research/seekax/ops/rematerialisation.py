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

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

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


# Per value of compute.remat; None keeps the input alone.
POLICIES = {'paper': paper_policy, 'full': None}


def recomputed_in_turn(
  function: Callable[..., Any], policy: Callable[..., bool] | None
) -> Callable[..., Any]:
  """`jax.checkpoint` of one of several layers that are written out.

  `jax.checkpoint` keeps the compiler from taking the first computation for the
  second, but doesn't say when the second is due. XLA's scheduler for CPUs
  starts it when its inputs are there, which is at once, and so all layers' are
  alive together: a model of six layers took nearly as much as without. Here
  what was kept waits for the gradient of the layer's output, and the gradient
  of its input, with which the layer before begins, for those of the parameters.
  (The body of a scan has that from the loop.)

  Args:
    function: of (parameters, array, ...); gives a tuple whose first entry is an
      array.
    policy: for `jax.checkpoint`.

  Returns:
    The same function. It has no forward-mode derivative.
  """
  checkpointed = jax.checkpoint(function, policy=policy)

  def forward(params, *args):
    out, pullback = jax.vjp(checkpointed, params, *args)
    # To wait, a parameter would have to be copied.
    own = set(map(id, jax.tree.leaves(params)))
    fixed = jax.tree.map(lambda x: x if id(x) in own else None, pullback)
    waiting = jax.tree.map(lambda x: None if id(x) in own else x, pullback)
    return out, (fixed, waiting)

  def backward(saved, gradients):
    fixed, waiting = saved
    waiting = jax.tree.map(lambda x: _after(x, gradients[0]), waiting)
    pullback = jax.tree.map(
      lambda a, b: b if a is None else a,
      fixed,
      waiting,
      is_leaf=lambda x: x is None,
    )
    dparams, dx, *others = pullback(gradients)
    for gradient in jax.tree.leaves(dparams):
      dx = _after(dx, gradient)
    return dparams, dx, *others

  run = jax.custom_vjp(function)
  run.defvjp(forward, backward)
  return run


def _after(x: Any, other: jax.Array) -> Any:
  """x, once `other` is there, in a way that no compiler sees through.

  One entry gets 0 added, or NaN where `other` begins with NaN and the gradients
  are lost anyway; in place, where x is not read again.
  """
  if not (isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)):
    return x
  first = other[(0,) * other.ndim]
  zero = jnp.where(first != first, first, 0).astype(x.dtype)
  return x.at[(0,) * x.ndim].add(zero)
