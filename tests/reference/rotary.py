"""Rotary embedding by the book: float64, one vector and one pair at a time."""

import math

import numpy as np


def frequencies(config) -> np.ndarray:
  """Radians per position of every pair."""
  width = config.rope_head_dim
  result = []
  for i in range(width // 2):
    plain = config.rope_theta ** (-2 * i / width)
    if config.rope_scaling == 'yarn':
      result.append(_yarn(plain, i, config))
    elif config.rope_scaling == 'llama3':
      result.append(_llama3(plain, config))
    else:
      result.append(plain)
  return np.array(result)


def _yarn(plain: float, i: int, config) -> float:
  width = config.rope_head_dim

  def corr(rotations):
    ratio = config.rope_original_length / (2 * math.pi * rotations)
    return width * math.log(ratio) / (2 * math.log(config.rope_theta))

  low = max(math.floor(corr(config.yarn_beta_fast)), 0)
  high = min(math.ceil(corr(config.yarn_beta_slow)), width - 1)
  if low == high:
    high = high + 0.001
  ramp = min(max((i - low) / (high - low), 0.0), 1.0)
  return plain * (1 - ramp) + plain / config.rope_factor * ramp


def _llama3(plain: float, config) -> float:
  wavelength = 2 * math.pi / plain
  low = config.llama3_low_freq_factor
  high = config.llama3_high_freq_factor
  if wavelength < config.rope_original_length / high:
    return plain
  if wavelength > config.rope_original_length / low:
    return plain / config.rope_factor
  smooth = (config.rope_original_length / wavelength - low) / (high - low)
  return (1 - smooth) * plain / config.rope_factor + smooth * plain


def _mscale(factor: float, mscale: float) -> float:
  if factor <= 1:
    return 1.0
  return 0.1 * mscale * math.log(factor) + 1


def table_factor(config) -> float:
  """Factor on cosine and sine."""
  if config.rope_scaling != 'yarn':
    return 1.0
  above = _mscale(config.rope_factor, config.yarn_mscale)
  return above / _mscale(config.rope_factor, config.yarn_mscale_all_dim)


def softmax_scale(config) -> float:
  """Factor on the whole logit, m squared included."""
  scale = 1 / math.sqrt(config.nope_head_dim + config.rope_head_dim)
  if config.rope_scaling == 'yarn' and config.yarn_mscale_all_dim != 0:
    m = _mscale(config.rope_factor, config.yarn_mscale_all_dim)
    scale = scale * m * m
  return scale


def rotate(x_R: np.ndarray, position: int, config) -> np.ndarray:
  """One vector at one position."""
  factor = table_factor(config)
  half = len(x_R) // 2
  result = np.zeros(len(x_R))
  for i, frequency in enumerate(frequencies(config)):
    if config.rope_layout == 'interleaved':
      first, second = 2 * i, 2 * i + 1
    else:
      first, second = i, i + half
    cos = math.cos(position * frequency) * factor
    sin = math.sin(position * frequency) * factor
    result[first] = x_R[first] * cos - x_R[second] * sin
    result[second] = x_R[first] * sin + x_R[second] * cos
  return result
