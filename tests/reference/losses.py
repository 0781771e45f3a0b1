"""The training loss, target by target, float64.

Letters: L positions, V vocabulary, J prediction depths.
"""

import dataclasses

import numpy as np

from reference import router, transformer
from reference.layers import log_softmax


@dataclasses.dataclass
class Losses:
  """Sums over a batch; `objective` is per main target.

  Attributes:
    main: nats, over main targets.
    mtp_J: nats, over each depth's valid targets.
    balance: over sequences and routers.
    z: squared log-normalisers, over main targets.
    mtp_z_J: the same, over each depth's valid targets.
    tokens: main targets.
    sequences: sequences.
    load: router key -> [N, E].
    margin: least margin of any routing choice.
  """

  main: float
  mtp_J: np.ndarray
  balance: float
  z: float
  mtp_z_J: np.ndarray
  tokens: int
  sequences: int
  load: dict[str, np.ndarray]
  margin: float


def batch_losses(params, router_bias, batch, config) -> Losses:
  """All sums of a batch.

  Args:
    params: float64 tree.
    router_bias: float64 tree.
    batch: tokens, targets, positions, segments, target segments, [B, L] each.
    config: the run.
  """
  model, isolate = config.model, config.data.isolate_documents
  main, balance, z, tokens, margin = 0.0, 0.0, 0.0, 0, np.inf
  mtp_J, mtp_z_J = np.zeros(model.mtp_depth), np.zeros(model.mtp_depth)
  load = {}
  batch_size, length = batch.tokens_BL.shape
  for b in range(batch_size):
    targets_L = batch.targets_BL[b]
    segments_L = batch.segments_BL[b]
    target_segments_L = batch.target_segments_BL[b]
    out = transformer.forward(
      params,
      router_bias,
      batch.tokens_BL[b],
      targets_L,
      batch.positions_BL[b],
      segments_L if isolate else None,
      model,
    )
    margin = min(margin, out.margin)
    for i in range(length):
      if isolate and target_segments_L[i] != segments_L[i]:
        continue
      main -= log_softmax(out.logits_LV[i])[targets_L[i]]
      z += np.log(np.exp(out.logits_LV[i]).sum()) ** 2
      tokens += 1
    for k in range(1, model.mtp_depth + 1):
      for i in range(length):
        # Depth k at position i predicts token i + k + 1: target i + k.
        if i + k >= length or target_segments_L[i + k] != segments_L[i]:
          continue
        log_probabilities_V = log_softmax(out.mtp_logits[k - 1][i])
        mtp_J[k - 1] -= log_probabilities_V[targets_L[i + k]]
        mtp_z_J[k - 1] += np.log(np.exp(out.mtp_logits[k - 1][i]).sum()) ** 2
    for key, routers in out.choices.items():
      if not routers:
        continue
      new = out.load(key, model.num_experts)
      load[key] = load.get(key, np.zeros_like(new)) + new
      for choices in routers:
        scores_LE = np.stack([choice.scores_E for choice in choices])
        balance += router.sequence_balance(scores_LE, model.experts_per_token)
  return Losses(
    main, mtp_J, balance, z, mtp_z_J, tokens, batch_size, load, margin
  )


def objective(losses: Losses, config) -> float:
  """main + lambda / J * sum over depths + alpha * mean over sequences.

  main and the depths with their z-losses.
  """
  z_weight = config.train.z_loss_weight
  total = (losses.main + z_weight * losses.z) / losses.tokens
  depths = config.model.mtp_depth
  for k in range(depths):
    depth = losses.mtp_J[k] + z_weight * losses.mtp_z_J[k]
    total += config.train.mtp_weight / depths * depth / losses.tokens
  mean_balance = losses.balance / losses.sequences
  return total + config.train.balance_weight * mean_balance
