"""Bias rule and AdamW, entry by entry where it matters, float64."""

import math

import numpy as np


def moved_bias(bias_NE, load_NE, rate: float) -> np.ndarray:
  """Up for an expert below the mean load, down above, still at it."""
  result = np.array(bias_NE, np.float64)
  for n in range(len(bias_NE)):
    mean = sum(load_NE[n]) / len(load_NE[n])
    for e, load in enumerate(load_NE[n]):
      if load < mean:
        result[n, e] += rate
      elif load > mean:
        result[n, e] -= rate
  return result


def learning_rate(step: int, optim, steps: int) -> float:
  """Linear warm-up, constant, cosine, final; the first step has step 0."""
  rate, final = optim.learning_rate, optim.final_learning_rate
  if step < optim.warmup_steps:
    return rate * (step + 1) / optim.warmup_steps
  start = optim.warmup_steps + optim.constant_steps
  if step < start:
    return rate
  span = optim.decay_steps if optim.decay_steps else steps - start
  if step >= start + span:
    return final
  cosine = math.cos(math.pi * (step - start) / span)
  return final + (rate - final) * (1 + cosine) / 2


class AdamW:
  """AdamW on a flat dict of arrays, after clipping by the global norm."""

  def __init__(self, params, optim, steps):
    self.params = {name: np.array(p, np.float64) for name, p in params.items()}
    self.first = {name: np.zeros_like(p) for name, p in self.params.items()}
    self.second = {name: np.zeros_like(p) for name, p in self.params.items()}
    self.optim, self.steps, self.count = optim, steps, 0

  def step(self, gradients, decayed) -> float:
    """One update; returns the gradient's norm before clipping.

    Args:
      gradients: name -> array.
      decayed: names under weight decay.
    """
    optim = self.optim
    rate = learning_rate(self.count, optim, self.steps)
    self.count += 1
    norm = math.sqrt(sum(np.sum(g**2) for g in gradients.values()))
    shrink = optim.clip_norm / norm if norm > optim.clip_norm else 1.0
    for name, gradient in gradients.items():
      g = gradient * shrink
      m = optim.beta1 * self.first[name] + (1 - optim.beta1) * g
      v = optim.beta2 * self.second[name] + (1 - optim.beta2) * g**2
      self.first[name], self.second[name] = m, v
      m_hat = m / (1 - optim.beta1**self.count)
      v_hat = v / (1 - optim.beta2**self.count)
      move = m_hat / (np.sqrt(v_hat) + optim.eps)
      if name in decayed:
        move = move + optim.weight_decay * self.params[name]
      self.params[name] = self.params[name] - rate * move
    return norm
