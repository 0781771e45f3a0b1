"""Norm, SwiGLU and softmax of one vector, float64."""

import numpy as np


def rms_norm(x_D: np.ndarray, scale_D: np.ndarray, eps: float) -> np.ndarray:
  return scale_D * x_D / np.sqrt(np.mean(x_D**2) + eps)


def sigmoid(x: np.ndarray) -> np.ndarray:
  return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
  return x * sigmoid(x)


def swiglu(x_D, gate_DF, up_DF, down_FD) -> np.ndarray:
  return (silu(x_D @ gate_DF) * (x_D @ up_DF)) @ down_FD


def softmax(x: np.ndarray) -> np.ndarray:
  shifted = np.exp(x - np.max(x))
  return shifted / np.sum(shifted)


def log_softmax(x: np.ndarray) -> np.ndarray:
  return x - np.max(x) - np.log(np.sum(np.exp(x - np.max(x))))
