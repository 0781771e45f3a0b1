"""Cross-entropy and z-loss of single targets, and gradients by hand, float64.

Letters: T tokens, D model width, V vocabulary.
"""

import numpy as np

from reference.layers import log_softmax


def sums(hidden_TD, head_DV, targets_T, weights_T) -> tuple[float, float]:
  """Weighted sums of cross-entropies and of squared log-normalisers."""
  plain, z = 0.0, 0.0
  for hidden_D, target, weight in zip(
    hidden_TD, targets_T, weights_T, strict=True
  ):
    logits_V = hidden_D @ head_DV
    plain -= weight * log_softmax(logits_V)[target]
    z += weight * _log_z(logits_V) ** 2
  return plain, z


def gradients(hidden_TD, head_DV, targets_T, weights_T, z_weight):
  """Of the first sum + z_weight * the second, by hidden states and head."""
  dhidden_TD, dhead_DV = np.zeros_like(hidden_TD), np.zeros_like(head_DV)
  for t, (target, weight) in enumerate(zip(targets_T, weights_T, strict=True)):
    logits_V = hidden_TD[t] @ head_DV
    softmax_V = np.exp(log_softmax(logits_V))
    dlogits_V = softmax_V * (1 + 2 * z_weight * _log_z(logits_V))
    dlogits_V[target] -= 1
    dhidden_TD[t] = weight * (head_DV @ dlogits_V)
    dhead_DV += weight * np.outer(hidden_TD[t], dlogits_V)
  return dhidden_TD, dhead_DV


def _log_z(logits_V) -> float:
  # Any entry's logit less its log-probability.
  return logits_V[0] - log_softmax(logits_V)[0]
