"""Routing of one token, and the sequence-wise balance loss, float64.

Letters: L positions, E experts, A experts per token.
"""

import dataclasses

import numpy as np

from reference.layers import sigmoid, softmax


@dataclasses.dataclass
class Choice:
  """Where one token goes.

  Attributes:
    gates: expert -> gate.
    scores_E: affinities without bias.
    margin: least distance between something taken and something left, among
      groups and among experts. Below rounding error the choice is arbitrary.
  """

  gates: dict[int, float]
  scores_E: np.ndarray
  margin: float


def _largest(values, count: int) -> tuple[list[int], float]:
  """The indices of the largest values, and by how much they won."""
  order = sorted(range(len(values)), key=lambda i: -values[i])
  if count == len(values):
    return order, np.inf
  return order[:count], values[order[count - 1]] - values[order[count]]


def choose(logits_E, bias_E, config, masked: float = -np.inf) -> Choice:
  """Routes one token.

  Args:
    logits_E: router logits.
    bias_E: selection bias.
    config: the model.
    masked: value of experts outside the kept groups. Anything but minus
      infinity is a mistake that tests show to matter.
  """
  count, groups = len(logits_E), config.num_expert_groups
  v3 = config.router == 'sigmoid'
  scores_E = sigmoid(logits_E) if v3 else softmax(logits_E)
  z_E = scores_E + bias_E
  size = count // groups
  group_scores = []
  for g in range(groups):
    best_first = sorted(z_E[g * size : (g + 1) * size], reverse=True)
    two = config.group_score == 'top2' and size > 1
    group_scores.append(sum(best_first[:2]) if two else best_first[0])
  kept, group_margin = _largest(group_scores, config.num_kept_groups)
  for e in range(count):
    if e // size not in kept:
      z_E[e] = masked
  chosen, margin = _largest(z_E, config.experts_per_token)
  gates = {e: scores_E[e] for e in chosen}
  total = sum(gates.values()) + 1e-20
  for e in chosen:
    if v3:  # normalise, if so, then scale in any case
      if config.normalize_gates:
        gates[e] = gates[e] / total
      gates[e] = gates[e] * config.routed_scale
    elif config.normalize_gates:  # one or the other
      gates[e] = gates[e] / total
    else:
      gates[e] = gates[e] * config.routed_scale
  return Choice(gates, scores_E, min(group_margin, margin))


def sequence_balance(scores_LE: np.ndarray, experts_per_token: int) -> float:
  """Sum over experts of f * P of one sequence."""
  length, count = scores_LE.shape
  f_E, p_E = np.zeros(count), np.zeros(count)
  for i in range(length):
    for e in _largest(scores_LE[i], experts_per_token)[0]:
      f_E[e] += count / (experts_per_token * length)
    p_E += scores_LE[i] / np.sum(scores_LE[i]) / length
  return float(np.sum(f_E * p_E))
