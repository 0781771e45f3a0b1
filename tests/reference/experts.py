"""Mixture of experts, token by token, and its gradients by hand, float64.

Letters: T tokens, A experts per token, S rows, E experts, D width, F hidden or
output width.
"""

import numpy as np

from reference import router
from reference.layers import sigmoid, silu, swiglu


def grouped_matmul(rows_SD, weights_EDF, sizes_E) -> np.ndarray:
  """Consecutive groups of rows, each times its matrix; 0 past the groups."""
  out_SF = np.zeros((len(rows_SD), weights_EDF.shape[2]))
  row = 0
  for e, size in enumerate(sizes_E):
    for _ in range(size):
      out_SF[row] = rows_SD[row] @ weights_EDF[e]
      row += 1
  return out_SF


def grouped_matmul_gradients(rows_SD, weights_EDF, sizes_E, dout_SF):
  """Gradients with respect to rows and weights."""
  drows_SD, dweights_EDF = np.zeros_like(rows_SD), np.zeros_like(weights_EDF)
  row = 0
  for e, size in enumerate(sizes_E):
    for _ in range(size):
      drows_SD[row] = weights_EDF[e] @ dout_SF[row]
      dweights_EDF[e] += np.outer(rows_SD[row], dout_SF[row])
      row += 1
  return drows_SD, dweights_EDF


def grouped_swiglu(x_TD, gates_TA, experts_TA, gate, up, down) -> np.ndarray:
  """Sum over each token's choices of gate * SwiGLU."""
  out_TD = np.zeros((len(x_TD), down.shape[2]))
  for t in range(len(x_TD)):
    for a, e in enumerate(experts_TA[t]):
      out_TD[t] += gates_TA[t, a] * swiglu(x_TD[t], gate[e], up[e], down[e])
  return out_TD


def grouped_swiglu_gradients(x_TD, gates_TA, experts_TA, gate, up, down, dy_TD):
  """Gradients with respect to tokens, gates and the three weights."""
  dx_TD, dgates_TA = np.zeros_like(x_TD), np.zeros_like(gates_TA)
  dgate, dup, ddown = (np.zeros_like(w) for w in (gate, up, down))
  for t in range(len(x_TD)):
    for a, e in enumerate(experts_TA[t]):
      x_D, g = x_TD[t], gates_TA[t, a]
      gate_F, up_F = x_D @ gate[e], x_D @ up[e]
      hidden_F = silu(gate_F) * up_F
      dgates_TA[t, a] = dy_TD[t] @ (hidden_F @ down[e])
      ddown[e] += g * np.outer(hidden_F, dy_TD[t])
      dhidden_F = g * (down[e] @ dy_TD[t])
      s_F = sigmoid(gate_F)
      dgate_F = dhidden_F * up_F * s_F * (1 + gate_F * (1 - s_F))
      dup_F = dhidden_F * silu(gate_F)
      dgate[e] += np.outer(x_D, dgate_F)
      dup[e] += np.outer(x_D, dup_F)
      dx_TD[t] += gate[e] @ dgate_F + up[e] @ dup_F
  return dx_TD, dgates_TA, dgate, dup, ddown


def mixture(x_TD, weights, bias_E, config):
  """Routed and shared experts of some tokens.

  Returns:
    (output [T, D], the tokens' router.Choice).
  """
  out_TD, choices = np.zeros_like(x_TD), []
  for t in range(len(x_TD)):
    choice = router.choose(
      x_TD[t] @ weights['router']['kernel'], bias_E, config
    )
    for e, gate in choice.gates.items():
      out_TD[t] += gate * swiglu(
        x_TD[t], weights['gate'][e], weights['up'][e], weights['down'][e]
      )
    if config.num_shared_experts:
      shared = weights['shared']
      out_TD[t] += swiglu(x_TD[t], shared['gate'], shared['up'], shared['down'])
    choices.append(choice)
  return out_TD, choices
