"""Arithmetic of one token, in FLOP; a multiply-add is 2.

The convention is the one that matches the MoE rows of table 2 of "Insights
into DeepSeek-V3" (arXiv 2505.09343): every activated parameter but the input
embedding takes one multiply-add, the output head included; attention scores
and their weighted sum take the lower triangle, counted as half of the square;
training costs three times the forward pass. Recomputation is left out, so that
these are model FLOP (MFU), not hardware FLOP.
"""

from seekax.configuration.model import ModelConfig
from seekax.planning import parameters

# One forward pass, and a gradient for the input and the weight of each product.
_TRAINING_FACTOR = 3


def attention_flops_per_token(
  model: ModelConfig, sequence_length: int, causal: bool = True
) -> float:
  """Scores and weighted sum of one layer, forward, projections left out.

  Args:
    model: the architecture. MLA is counted in its expanded form, which is the
      one used in training: K + R for the score, U for the sum.
    sequence_length: positions that attend to each other.
    causal: whether to count the lower triangle, as half, or the whole square.

  Returns:
    FLOP per token, averaged over the sequence.
  """
  width = model.qk_head_dim + model.value_head_dim
  positions = sequence_length / 2 if causal else sequence_length
  return 2.0 * model.num_heads * width * positions


def forward_flops_per_token(
  model: ModelConfig,
  sequence_length: int,
  with_mtp: bool = False,
  causal: bool = True,
) -> float:
  """FLOP per token of a forward pass over a whole sequence.

  Args:
    model: the architecture.
    sequence_length: positions that attend to each other.
    with_mtp: whether to add the MTP modules, each with its projection, one
      layer and another use of the output head.
    causal: see `attention_flops_per_token`.

  Returns:
    FLOP per token.
  """
  counts = parameters.count_parameters(model)
  active = counts.activated_without_embedding
  layers = model.num_layers
  if with_mtp:
    active += counts.mtp_activated
    layers += model.mtp_depth
  attention = attention_flops_per_token(model, sequence_length, causal)
  return 2.0 * active + layers * attention


def training_flops_per_token(
  model: ModelConfig,
  sequence_length: int,
  with_mtp: bool = False,
  causal: bool = True,
) -> float:
  """FLOP per trained token: three times the forward pass.

  The published 250 GFLOP of DeepSeek-V3 at 4,096 leave the MTP module out; it
  adds 10.2.

  Args:
    model: the architecture.
    sequence_length: positions that attend to each other.
    with_mtp: whether to add the MTP modules.
    causal: see `attention_flops_per_token`.

  Returns:
    FLOP per token.
  """
  return _TRAINING_FACTOR * forward_flops_per_token(
    model, sequence_length, with_mtp, causal
  )


def model_flops_utilization(
  flops_per_token: float, tokens_per_second: float, peak_flops: float
) -> float:
  """Share of the peak that the model's own arithmetic reaches (MFU).

  Args:
    flops_per_token: from `training_flops_per_token`.
    tokens_per_second: the rate of all devices, or of one.
    peak_flops: the peak of as many devices; 0.0 if it is unknown.

  Returns:
    A share between 0 and 1; 0.0 if the peak is unknown.
  """
  if peak_flops == 0:
    return 0.0
  return flops_per_token * tokens_per_second / peak_flops
