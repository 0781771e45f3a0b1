"""Bias rule and AdamW, entry by entry where it matters, float64."""

import fractions
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


def learning_rate(step: int, config) -> float:
  """The rate of a step, its tokens counted one step after the other."""
  optim = config.optim
  before = [0]
  for _ in range(max(step, config.train.steps, optim.warmup_steps)):
    before.append(before[-1] + batch_tokens(before[-1], config))
  tokens, warm = before[step], before[optim.warmup_steps]
  if step < optim.warmup_steps:
    return optim.learning_rate * (step + 1) / optim.warmup_steps
  start = optim.constant_tokens if optim.constant_tokens > warm else warm
  if tokens < start:
    return optim.learning_rate
  end = before[config.train.steps]
  if optim.decay_tokens:
    end = start + optim.decay_tokens
  if tokens < end:
    cosine = math.cos(math.pi * (tokens - start) / (end - start))
    low, high = optim.final_learning_rate, optim.learning_rate
    return low + (high - low) * (1 + cosine) / 2
  if optim.final_tokens and tokens >= end + optim.final_tokens:
    return optim.last_learning_rate
  return optim.final_learning_rate


def batch_tokens(tokens: int, config) -> int:
  """Tokens of the step that follows so many: whole micro-batches of a line."""
  train = config.train
  parts = train.micro_batches
  if train.ramp_tokens and tokens < train.ramp_tokens:
    first = train.ramp_micro_batches
    parts = first + math.floor(
      fractions.Fraction((parts - first) * tokens, train.ramp_tokens)
    )
  rows = config.data.batch_size // train.micro_batches
  return parts * rows * config.data.sequence_length


class AdamW:
  """AdamW on a flat dict of arrays, after clipping by the global norm."""

  def __init__(self, params, optim):
    self.params = {name: np.array(p, np.float64) for name, p in params.items()}
    self.first = {name: np.zeros_like(p) for name, p in self.params.items()}
    self.second = {name: np.zeros_like(p) for name, p in self.params.items()}
    self.optim, self.count = optim, 0

  def step(self, gradients, decayed, rate: float) -> float:
    """One update; returns the gradient's norm before clipping.

    Args:
      gradients: name -> array.
      decayed: names under weight decay.
      rate: learning rate.
    """
    optim = self.optim
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
