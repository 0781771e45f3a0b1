"""How clear the choices of routers are.

Activations differ in the last bit between shapes of batches, so that what is
compared expert by expert needs choices that such a bit can't turn.
"""

import jax
import jax.numpy as jnp

from seekax.model import router


def watch(margins: list[float]) -> None:
  """From now on notes how close every choice of experts and groups was."""
  route = router.route

  def gap(values_TE, count):
    if count == values_TE.shape[1]:
      return jnp.inf
    best = jax.lax.top_k(values_TE, count + 1)[0]
    return jnp.min(best[:, count - 1] - best[:, count])

  def watched(logits_TE, bias_E, config):
    z_TE = jax.nn.sigmoid(logits_TE) + bias_E
    z_TGI = z_TE.reshape(len(z_TE), config.num_expert_groups, -1)
    groups_TG = jax.lax.top_k(z_TGI, 2)[0].sum(-1)
    margin = jnp.minimum(
      gap(groups_TG, config.num_kept_groups),
      gap(router.keep_best_groups(z_TE, config), config.experts_per_token),
    )
    jax.debug.callback(lambda value: margins.append(float(value)), margin)
    return route(logits_TE, bias_E, config)

  router.route = watched
