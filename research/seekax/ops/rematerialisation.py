"""What the backward pass keeps of a layer, and what it recomputes.

The paper's policy keeps, besides the layer's input and its parameters,

* the down-projections that the MLA norms read,
* attention's output, with the log-normalisers of its softmax,
* the router's logits and its choices,
* both inputs of every SwiGLU,

and recomputes the rest: the norms, the MLA up-projections, what is rotated and
concatenated from them, the SwiGLU (DeepSeek-V3, sections 3.2.3 and 3.3.3).
Each of these costs little; the queries, keys and values of all heads are by far
the largest arrays that a layer would keep.

Names say what to keep, not what to recompute: for an array that is named as not
kept, JAX would keep its input, which is as large.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from seekax.arrays import PyTree

# `keep` gives arrays these names where they are computed.
NAMES = (
  'query_latent',  # before its norm
  'kv_latent',  # before its norm, with the shared rope key
  'query',  # these three only in GQA, MHA and MQA, which expand nothing
  'key',
  'value',
  'attention_logits',  # for short sequences, whose logits are computed at once
  'attention_output',
  'attention_log_sum',
  'attention_projected',  # what attention adds to the residual stream
  'router_logits',
  'router_choice',
  'balance_count',
  'swiglu_gate',  # W1 x
  'swiglu_up',  # W3 x
)
# Primitives that can't be named inside, or that cost much for their size: slots
# in the order of their experts; the outputs of fused kernels.
_PRIMITIVES = (
  'sort',
  'pallas_call',
  'dot_product_attention_fwd_wrapper',
)

_keep_names = jax.checkpoint_policies.save_only_these_names(*NAMES)


def keep(x: jax.Array, name: str) -> jax.Array:
  """Returns x, marked as an array that the paper's policy keeps.

  Raises:
    ValueError: the name isn't one of NAMES, so x wouldn't be kept.
  """
  if name not in NAMES:
    raise ValueError(f'{name!r} is not one of {", ".join(NAMES)}')
  return checkpoint_name(x, name)


def paper_policy(primitive: Any, *avals: object, **params: object) -> bool:
  """For `jax.checkpoint`: whether a primitive's results may be kept."""
  if primitive.name in _PRIMITIVES:
    return True
  return _keep_names(primitive, *avals, **params)


# Policy for each value of compute.remat; None keeps only the input.
POLICIES = {'paper': paper_policy, 'full': None}


def recomputed_in_turn(
  function: Callable[..., PyTree], policy: Callable[..., bool] | None
) -> Callable[..., PyTree]:
  """`jax.checkpoint` for one of several layers that aren't in a scan.

  `jax.checkpoint` keeps the compiler from merging the recomputation with the
  first computation, but doesn't say when to recompute. XLA's scheduler for CPUs
  starts it as soon as its inputs are there, which is at once, and so all
  layers' arrays are in memory together: a model of six layers took nearly as
  much as without. Here the kept arrays wait for the gradient of the layer's
  output; and the gradient of its input, with which the layer before begins,
  waits for those of the parameters. (The loop of a scan does this by itself.)

  Args:
    function: takes (parameters, array, ...) and returns a tuple whose first
      entry is an array.
    policy: a policy for `jax.checkpoint`.

  Returns:
    The same function, without a forward-mode derivative.
    The same function. It has no forward-mode derivative.
  """
  checkpointed = jax.checkpoint(function, policy=policy)

  def forward(params, *args):
    out, pullback = jax.vjp(checkpointed, params, *args)
    # A parameter would have to be copied to wait.
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


def _after(x: PyTree, other: jax.Array) -> PyTree:
  """Returns x, available after `other`, in a way that compilers can't undo.

  One entry gets 0 added, or NaN where `other` begins with NaN and the gradients
  are lost anyway; the update is in place where x isn't used again.
  """
  if not (isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)):
    return x
  first = other[(0,) * other.ndim]
  zero = jnp.where(first != first, first, 0).astype(x.dtype)
  return x.at[(0,) * x.ndim].add(zero)
