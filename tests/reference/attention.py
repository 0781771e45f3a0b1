"""Attention of one sequence, head by head and query by query, float64.

Letters: L positions, D model width, H heads, N key/value heads, K query/key
width, U value width, C key/value latent, R rope width.
"""

import numpy as np

from reference import rotary
from reference.layers import rms_norm, softmax


def attend_head(q_LK, k_LK, v_LU, scale, segments_L=None) -> np.ndarray:
  """One head: every query over the keys at or before it, in its document."""
  length = len(q_LK)
  out_LU = np.zeros((length, v_LU.shape[1]))
  for i in range(length):
    seen = [
      j
      for j in range(i + 1)
      if segments_L is None or segments_L[j] == segments_L[i]
    ]
    logits = np.array([scale * np.dot(q_LK[i], k_LK[j]) for j in seen])
    for weight, j in zip(softmax(logits), seen, strict=True):
      out_LU[i] += weight * v_LU[j]
  return out_LU


def attend(q_LHK, k_LNK, v_LNU, scale, segments_L=None) -> np.ndarray:
  """All heads; H/N consecutive query heads share a key/value head."""
  length, heads = q_LHK.shape[:2]
  shared_by = heads // k_LNK.shape[1]
  out_LHU = np.zeros((length, heads, v_LNU.shape[2]))
  for h in range(heads):
    n = h // shared_by
    out_LHU[:, h] = attend_head(
      q_LHK[:, h], k_LNK[:, n], v_LNU[:, n], scale, segments_L
    )
  return out_LHU


def attend_gradients(q_LHK, k_LNK, v_LNU, scale, segments_L, dout_LHU):
  """Gradients with respect to queries, keys and values, query by query."""
  length, heads = q_LHK.shape[:2]
  shared_by = heads // k_LNK.shape[1]
  dq_LHK, dk_LNK, dv_LNU = (np.zeros_like(x) for x in (q_LHK, k_LNK, v_LNU))
  for i in range(length):
    seen = np.arange(i + 1)
    if segments_L is not None:
      seen = seen[segments_L[: i + 1] == segments_L[i]]
    for h in range(heads):
      n = h // shared_by
      keys, values = k_LNK[seen, n], v_LNU[seen, n]
      weights = softmax(scale * (keys @ q_LHK[i, h]))
      dweights = values @ dout_LHU[i, h]
      dlogits = scale * weights * (dweights - weights @ dweights)
      dq_LHK[i, h] = dlogits @ keys
      dk_LNK[seen, n] += np.outer(dlogits, q_LHK[i, h])
      dv_LNU[seen, n] += np.outer(weights, dout_LHU[i, h])
  return dq_LHK, dk_LNK, dv_LNU


def attend_last(q_HK, k_MNK, v_MNU, scale) -> np.ndarray:
  """One new query over a whole cache; 0 over an empty one."""
  heads, shared_by = len(q_HK), len(q_HK) // k_MNK.shape[1]
  out_HU = np.zeros((heads, v_MNU.shape[2]))
  for h in range(heads) if len(k_MNK) else ():
    n = h // shared_by
    out_HU[h] = softmax(scale * (k_MNK[:, n] @ q_HK[h])) @ v_MNU[:, n]
  return out_HU


def _output(out_LHU, w_out_HUD) -> np.ndarray:
  out_LD = np.zeros((len(out_LHU), w_out_HUD.shape[2]))
  for i in range(len(out_LHU)):
    for h in range(w_out_HUD.shape[0]):
      out_LD[i] += out_LHU[i, h] @ w_out_HUD[h]
  return out_LD


def mla(x_LD, positions_L, segments_L, weights, config) -> np.ndarray:
  """Multi-head latent attention, keys and values expanded."""
  length, heads = len(x_LD), config.num_heads
  k_width, latent_width = config.nope_head_dim, config.kv_latent_dim
  q_LHK = np.zeros((length, heads, k_width + config.rope_head_dim))
  k_LHK = np.zeros_like(q_LHK)
  v_LHU = np.zeros((length, heads, config.value_head_dim))
  for i in range(length):
    query_in = x_LD[i]
    if config.query_latent_dim:
      query_in = rms_norm(
        x_LD[i] @ weights['query_down'],
        weights['query_norm']['scale'],
        1e-6,
      )
    down = x_LD[i] @ weights['kv_down']
    latent_C = rms_norm(down[:latent_width], weights['kv_norm']['scale'], 1e-6)
    key_rope_R = rotary.rotate(down[latent_width:], positions_L[i], config)
    for h in range(heads):
      query = query_in @ weights['query_up'][:, h]
      q_LHK[i, h, :k_width] = query[:k_width]
      q_LHK[i, h, k_width:] = rotary.rotate(
        query[k_width:], positions_L[i], config
      )
      up = latent_C @ weights['kv_up'][:, h]
      k_LHK[i, h, :k_width] = up[:k_width]
      k_LHK[i, h, k_width:] = key_rope_R
      v_LHU[i, h] = up[k_width:]
  scale = rotary.softmax_scale(config)
  out_LHU = attend(q_LHK, k_LHK, v_LHU, scale, segments_L)
  return _output(out_LHU, weights['out'])


def grouped(x_LD, positions_L, segments_L, weights, config) -> np.ndarray:
  """GQA, MHA and MQA: as many key/value heads as the weights have."""
  k_width = config.nope_head_dim

  def project(w_DHK):
    result = np.zeros((len(x_LD), w_DHK.shape[1], w_DHK.shape[2]))
    for i in range(len(x_LD)):
      for h in range(w_DHK.shape[1]):
        result[i, h] = x_LD[i] @ w_DHK[:, h]
    return result

  def turn(x_LHK):
    for i in range(len(x_LHK)):
      for h in range(x_LHK.shape[1]):
        x_LHK[i, h, k_width:] = rotary.rotate(
          x_LHK[i, h, k_width:], positions_L[i], config
        )
    return x_LHK

  out_LHU = attend(
    turn(project(weights['query'])),
    turn(project(weights['key'])),
    project(weights['value']),
    rotary.softmax_scale(config),
    segments_L,
  )
  return _output(out_LHU, weights['out'])
