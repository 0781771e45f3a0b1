"""The whole model on one sequence at a time, float64.

Letters: B batch, L positions, D model width, V vocabulary, E experts.
"""

import dataclasses

import jax
import numpy as np

from reference import attention, experts
from reference.layers import rms_norm, swiglu
from reference.router import Choice


@dataclasses.dataclass
class Sequence:
  """What the model makes of one sequence.

  Attributes:
    before_norm_LD: the main model's state before its final norm.
    hidden_LD: and after it.
    logits_LV: the main model's.
    mtp_logits: [L, V] of every depth.
    choices: router key ('layers', 'mtp') -> per router, per token.
  """

  before_norm_LD: np.ndarray
  hidden_LD: np.ndarray
  logits_LV: np.ndarray
  mtp_logits: list[np.ndarray]
  choices: dict[str, list[list[Choice]]]

  @property
  def margin(self) -> float:
    """Least margin of any routing choice."""
    every = [c for routers in self.choices.values() for r in routers for c in r]
    return min([c.margin for c in every], default=np.inf)

  def load(self, key: str, num_experts: int) -> np.ndarray:
    """Choices per router and expert."""
    load = np.zeros((len(self.choices[key]), num_experts), np.int64)
    for n, choices in enumerate(self.choices[key]):
      for choice in choices:
        for e in choice.gates:
          load[n, e] += 1
    return load


def to_float64(tree):
  """A tree of JAX or NumPy arrays as float64 NumPy arrays."""
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def _norm(x_LD, weights, eps):
  return np.stack([rms_norm(x_D, weights['scale'], eps) for x_D in x_LD])


def block(x_LD, weights, bias_E, positions_L, segments_L, config):
  """One pre-norm layer; returns (x, choices or None)."""
  kind = attention.mla if config.attention == 'mla' else attention.grouped
  normed_LD = _norm(x_LD, weights['attention_norm'], config.norm_eps)
  x_LD = x_LD + kind(
    normed_LD, positions_L, segments_L, weights['attention'], config
  )
  normed_LD = _norm(x_LD, weights['ffn_norm'], config.norm_eps)
  if 'experts' in weights:
    y_LD, choices = experts.mixture(
      normed_LD, weights['experts'], bias_E, config
    )
    return x_LD + y_LD, choices
  mlp = weights['mlp']
  y_LD = [swiglu(x_D, mlp['gate'], mlp['up'], mlp['down']) for x_D in normed_LD]
  return x_LD + np.stack(y_LD), None


def mtp_module(
  hidden_LD,
  embedded_LD,
  weights,
  bias_E,
  positions_L,
  segments_L,
  config,
  hidden_first: bool = False,
):
  """One MTP module; returns (hidden states after its own norm, choices).

  Args:
    hidden_LD: the depth before, after its final norm.
    embedded_LD: embeddings of the next tokens.
    weights: the module's.
    bias_E: its router's bias.
    positions_L: those of hidden_LD.
    segments_L: document numbers or None.
    config: the model.
    hidden_first: a mistake that tests show to matter.
  """
  eps = config.norm_eps
  pair = [
    _norm(embedded_LD, weights['embed_norm'], eps),
    _norm(hidden_LD, weights['hidden_norm'], eps),
  ]
  if hidden_first:
    pair.reverse()
  x_LD = np.concatenate(pair, axis=1) @ weights['project']
  x_LD, choices = block(
    x_LD, weights['block'], bias_E, positions_L, segments_L, config
  )
  return _norm(x_LD, weights['final_norm'], eps), choices


def _layers(params):
  """Blocks in order: dense ones first."""
  for name in ('dense_layers', 'expert_layers'):
    if name in params:
      stack = params[name]
      count = len(stack['ffn_norm']['scale'])
      for n in range(count):
        yield name, n, jax.tree.map(lambda w, n=n: w[n], stack)


def forward(
  params,
  router_bias,
  tokens_L,
  next_tokens_L,
  positions_L,
  segments_L,
  config,
  hidden_first: bool = False,
  before_norm: bool = False,
) -> Sequence:
  """The main model and its MTP modules on one sequence.

  Args:
    params: float64 tree.
    router_bias: {'layers': [N, E], 'mtp': [J, E]} or {}.
    tokens_L: token i.
    next_tokens_L: token i + 1.
    positions_L: rotary positions.
    segments_L: document numbers or None.
    config: the model.
    hidden_first: MTP concatenates in the wrong order.
    before_norm: MTP wrongly reads the state before the final norm.
  """
  table_VD = params['embedding']['table']
  nobody_E = np.zeros(max(config.num_experts, 1))
  choices = {'layers': [], 'mtp': []}
  x_LD = np.stack([table_VD[token] for token in tokens_L])
  for name, n, weights in _layers(params):
    bias_E = nobody_E
    if name == 'expert_layers' and router_bias:
      bias_E = router_bias['layers'][n]
    x_LD, chosen = block(x_LD, weights, bias_E, positions_L, segments_L, config)
    if chosen is not None:
      choices['layers'].append(chosen)
  before_norm_LD = x_LD
  hidden_LD = _norm(x_LD, params['final_norm'], config.norm_eps)
  mtp_logits = []
  state_LD = before_norm_LD if before_norm else hidden_LD
  for k in range(config.mtp_depth):
    ahead = list(next_tokens_L[k:]) + [0] * k
    state_LD, chosen = mtp_module(
      state_LD,
      np.stack([table_VD[token] for token in ahead]),
      params[f'mtp_{k}'],
      router_bias['mtp'][k] if router_bias else nobody_E,
      positions_L,
      segments_L,
      config,
      hidden_first,
    )
    mtp_logits.append(state_LD @ params['head'])
    if chosen is not None:
      choices['mtp'].append(chosen)
  return Sequence(
    before_norm_LD, hidden_LD, hidden_LD @ params['head'], mtp_logits, choices
  )
