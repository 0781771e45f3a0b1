"""Log-likelihoods: of held-out text, and of anything that is scored.

Letters: B windows at once, L positions, V vocabulary, J prediction depths.
"""

from collections.abc import Iterator, Sequence
import functools
import math
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from seekax.configuration.errors import InputError
from seekax.data.tokenizer import Tokenizer
from seekax.machine import compiling
from seekax.model.transformer import shift_left, Transformer, Trunk
from seekax.model.weights import Weights
from seekax.ops.cross_entropy import log_probabilities
from seekax.parallel.rules import constrain


def _trunk(model: Transformer, weights: Weights, tokens_BL: jax.Array) -> Trunk:
  """The main model on whole sequences, each from position 0."""
  return model.apply(
    {'params': weights.params},
    tokens_BL,
    _positions(tokens_BL),
    None,
    weights.router_bias,
  )


def _hidden_and_further(
  model: Transformer, weights: Weights, tokens_BL: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
  """Hidden states [B, L, D] of the main model, and of every MTP depth."""
  hidden_BLD = _trunk(model, weights, tokens_BL).hidden_BLD
  further, _ = model.apply(
    {'params': weights.params},
    hidden_BLD,
    shift_left(tokens_BL, 1),
    _positions(tokens_BL),
    None,
    weights.router_bias,
    method='predict_further',
  )
  return hidden_BLD, further


def _positions(tokens_BL: jax.Array) -> jax.Array:
  return jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)


def target_log_probabilities(
  model: Transformer,
  weights: Weights,
  tokens_BL: jax.Array,
  targets_BL: jax.Array,
) -> jax.Array:
  """Log-probability of a target at every position, in nats.

  Args:
    model: the model.
    weights: in the compute dtype.
    tokens_BL: token ids.
    targets_BL: the token that each position is asked for.

  Returns:
    float32 [B, L].
  """
  hidden_BLD = _trunk(model, weights, tokens_BL).hidden_BLD
  flat = log_probabilities(
    hidden_BLD.reshape(-1, model.config.embed_dim),
    weights.params['head'],
    targets_BL.reshape(-1),
  )
  return constrain(flat.reshape(tokens_BL.shape), None, None)


def windows(length: int, context: int) -> Iterator[tuple[int, int, int]]:
  """Windows over a sequence, each half a context further than the last.

  Every position but the first is a target once, with at least half a context
  before it, or all there is.

  Args:
    length: tokens in the sequence.
    context: positions of a window.

  Yields:
    (start, end, fresh): inputs are tokens[start:end], their targets one
    further, and those from offset `fresh` on haven't been scored yet.
  """
  stride = max(context // 2, 1)
  scored = 1
  start = 0
  while scored < length:
    end = min(start + context, length - 1)
    yield start, end, scored - start - 1
    scored = end + 1
    start += stride


# Windows are padded to this, doubled as often as it takes, at most to the
# context: work and memory follow the text, and few lengths are compiled.
_LEAST_LENGTH = 256


def padded_length(length: int, context: int) -> int:
  """Positions that are computed for so many, at most `context`."""
  padded = _LEAST_LENGTH
  while padded < length:
    padded *= 2
  return min(padded, context)


def padded_rows(count: int, most: int) -> int:
  """Rows that are computed for so many: a power of two, at most `most`."""
  return min(most, 1 << max(count - 1, 0).bit_length())


def log_likelihoods(
  model: Transformer,
  weights: Weights,
  sequences: Sequence[np.ndarray],
  batch_size: int,
  context: int = 0,
) -> list[float]:
  """Log-likelihood of each sequence after its first token, in nats.

  Args:
    model: the model.
    weights: in the compute dtype.
    sequences: token ids, each usually starting with bos.
    batch_size: windows computed at once, at most.
    context: positions of a window; 0: the model's context length.

  Returns:
    One sum per sequence.
  """
  context = context or model.config.context_length
  plan = [
    (index, *window)
    for index, sequence in enumerate(sequences)
    for window in windows(len(sequence), context)
  ]
  # Windows of a length together; a text's last one is shorter than the others.
  plan.sort(key=lambda window: window[1] - window[2])
  rows = padded_rows(len(plan), batch_size)
  totals = [0.0] * len(sequences)
  for first in range(0, len(plan), rows):
    part = plan[first : first + rows]
    longest = max(end - start for _, start, end, _ in part)
    shape = (rows, padded_length(longest, context))
    tokens_BL = np.zeros(shape, np.int32)
    targets_BL = np.zeros(shape, np.int32)
    for row, (index, start, end, _) in enumerate(part):
      tokens_BL[row, : end - start] = sequences[index][start:end]
      targets_BL[row, : end - start] = sequences[index][start + 1 : end + 1]
    scores_BL = np.asarray(
      _compiled_log_probabilities(model, weights, tokens_BL, targets_BL),
      np.float64,
    )
    for row, (index, start, end, fresh) in enumerate(part):
      totals[index] += float(scores_BL[row, fresh : end - start].sum())
  return totals


# Rows whose logits are in memory at once.
_GREEDY_ROWS = 256


def greedy_tokens(
  model: Transformer, weights: Weights, tokens_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Likeliest tokens, of the main model [B, L] and every depth [J, B, L]."""
  variables = {'params': weights.params}
  hidden_BLD, further = _hidden_and_further(model, weights, tokens_BL)

  def best(hidden_BLD):
    rows = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])
    rows = jnp.pad(rows, ((0, -len(rows) % _GREEDY_ROWS), (0, 0)))
    best_R = jax.lax.map(
      lambda hidden: jnp.argmax(
        model.apply(variables, hidden, method='logits'), axis=-1
      ),
      rows.reshape(-1, _GREEDY_ROWS, rows.shape[-1]),
    )
    best_BL = best_R.reshape(-1)[: tokens_BL.size].reshape(tokens_BL.shape)
    return constrain(best_BL, None, None)

  return best(hidden_BLD), jnp.stack([best(hidden) for hidden in further])


def acceptance(
  model: Transformer,
  weights: Weights,
  sequences: Sequence[np.ndarray],
  batch_size: int,
  context: int = 0,
) -> list[float]:
  """How often each MTP depth predicts what the main model will say.

  The share of positions at which the likeliest token of depth k, from k tokens
  earlier, is the main model's likeliest one: of greedy drafts so many would be
  accepted on this text. (A draft in generation reads the model's own tokens.)

  Args:
    model: one with MTP modules.
    weights: in the compute dtype.
    sequences: token ids; each one's first window is read.
    batch_size: windows computed at once, at most; the rest isn't read.
    context: positions of a window; 0: the model's context length.

  Returns:
    One share per depth; NaN without a position.
  """
  context = context or model.config.context_length
  chosen = [sequence[:context] for sequence in sequences[:batch_size]]
  longest = max(map(len, chosen), default=1)
  rows = padded_rows(len(chosen), batch_size)
  tokens_BL = np.zeros((rows, padded_length(longest, context)), np.int32)
  for row, tokens in enumerate(chosen):
    tokens_BL[row, : len(tokens)] = tokens
  main_BL, mtp_JBL = jax.device_get(_compiled_greedy(model, weights, tokens_BL))
  shares = []
  for depth, draft_BL in enumerate(mtp_JBL, start=1):
    same = [
      draft_BL[row, : len(tokens) - depth] == main_BL[row, depth : len(tokens)]
      for row, tokens in enumerate(chosen)
      if len(tokens) > depth
    ]
    shares.append(float(np.concatenate(same).mean()) if same else math.nan)
  return shares


class TokenScore(TypedDict):
  """What tokens come to.

  Keys:
    tokens: number of tokens that were scored, BOS not among them.
    log_likelihood: their log-probability, in nats.
  """

  tokens: int
  log_likelihood: float


class Score(TokenScore):
  """What a text comes to.

  Keys:
    bytes: length of the text in UTF-8.
    bits_per_byte: the log-likelihood in bits, over the bytes.
  """

  bytes: int
  bits_per_byte: float


def score_texts(
  model: Transformer,
  weights: Weights,
  tokenizer: Tokenizer,
  texts: Sequence[str],
  batch_size: int,
) -> list[Score]:
  """Scores texts, BOS before each; see `log_likelihoods`.

  Raises:
    InputError: a text is empty or not valid Unicode.
  """
  if '' in texts:
    raise InputError('an empty text has no log-likelihood')
  sequences = [
    np.append(tokenizer.bos_id, ids) for ids in tokenizer.encode_many(texts)
  ]
  totals = log_likelihoods(model, weights, sequences, batch_size)
  sizes = [len(text.encode('utf-8')) for text in texts]
  return [
    Score(
      tokens=len(sequence) - 1,
      log_likelihood=total,
      bytes=size,
      bits_per_byte=bits_per_byte(total, size),
    )
    for sequence, total, size in zip(sequences, totals, sizes, strict=True)
  ]


def bits_per_byte(log_likelihood: float, num_bytes: int) -> float:
  """Nats of a text to bits per byte of it."""
  return -log_likelihood / math.log(2) / num_bytes


def logits(
  model: Transformer, weights: Weights, tokens_BL: jax.Array
) -> jax.Array:
  """Every logit of the main model, float32 [B, L, V]; see `all_logits`."""
  hidden_BLD = _trunk(model, weights, tokens_BL).hidden_BLD
  variables = {'params': weights.params}
  return model.apply(variables, hidden_BLD, method='logits')


def all_logits(
  model: Transformer, weights: Weights, tokens_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Every logit of the main model and of the MTP modules.

  Args:
    model: the model.
    weights: as the model takes them.
    tokens_BL: token ids.

  Returns:
    (float32 [B, L, V], where position i predicts token i + 1; float32
    [J, B, L, V], where depth k, from 0, predicts token i + k + 2, and is NaN
    where there is no token i + k + 1 to embed).
  """
  variables = {'params': weights.params}
  length = tokens_BL.shape[1]
  hidden_BLD, further = _hidden_and_further(model, weights, tokens_BL)
  logits = functools.partial(model.apply, variables, method='logits')
  missing = [
    jnp.arange(length)[:, None] >= length - 1 - k for k in range(len(further))
  ]
  mtp = [
    jnp.where(none, jnp.nan, logits(hidden))
    for none, hidden in zip(missing, further, strict=True)
  ]
  empty = jnp.zeros((0, *tokens_BL.shape, model.config.vocab_size), jnp.float32)
  return logits(hidden_BLD), jnp.stack(mtp) if mtp else empty


# The loops above compile what they call; whoever has another loop compiles for
# it. The model is static: it is hashed by its configuration.
_compiled_log_probabilities = compiling.jit(
  target_log_probabilities, static_argnums=(0,)
)
_compiled_greedy = compiling.jit(greedy_tokens, static_argnums=(0,))
