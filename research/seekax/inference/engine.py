"""Generation: prefill with full MLA, then absorbed MLA on the cache.

Letters: B batch, L prompt positions, V vocabulary.
"""

from collections.abc import Collection, Iterator
import functools

import jax
import jax.numpy as jnp
import numpy as np

from seekax.configuration.errors import InputError
from seekax.inference.cache import Cache, fill, init_cache
from seekax.inference.sampling import NO_TOKEN, sample
from seekax.machine import compiling
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights
from seekax.parallel.rules import constrain


class PromptError(InputError):
  """A prompt that can not be continued."""


class NonFiniteError(RuntimeError):
  """A model says what is no number."""


# Prompts and caches are padded to a multiple of these, so that few lengths are
# compiled.
PROMPT_MULTIPLE = 32
CACHE_MULTIPLE = 256


def _padded(length: int, multiple: int, limit: int) -> int:
  return min(-(-length // multiple) * multiple, limit)


def prefill(
  model: Transformer,
  weights: Weights,
  tokens_BL: jax.Array,
  lengths_B: jax.Array,
  max_length: int,
) -> tuple[jax.Array, Cache]:
  """Reads the prompts and fills a cache.

  Args:
    model: the model.
    weights: in the compute dtype.
    tokens_BL: prompts, padded on the right.
    lengths_B: prompt lengths, at least 1.
    max_length: room of the cache, in positions.

  Returns:
    (float32 logits [B, V] after each prompt's last token, the cache).
  """
  positions_BL = jnp.broadcast_to(
    jnp.arange(tokens_BL.shape[1]), tokens_BL.shape
  )
  variables = {'params': weights.params}
  trunk = model.apply(
    variables, tokens_BL, positions_BL, None, weights.router_bias
  )
  last_BD = trunk.hidden_BLD[jnp.arange(tokens_BL.shape[0]), lengths_B - 1]
  logits_BV = constrain(
    model.apply(variables, last_BD, method='logits'), None, None
  )
  dtype = trunk.hidden_BLD.dtype
  empty = init_cache(model, tokens_BL.shape[0], max_length, dtype)
  return logits_BV, fill(empty, trunk.cache, lengths_B)


def decode(
  model: Transformer, weights: Weights, tokens_B: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
  """Adds one token per request; returns the next logits [B, V] and cache."""
  variables = {'params': weights.params}
  hidden_BD, layers = model.apply(
    variables,
    tokens_B,
    cache.lengths_B,
    cache.layers,
    weights.router_bias,
    method='decode',
  )
  logits_BV = constrain(
    model.apply(variables, hidden_BD, method='logits'), None, None
  )
  return logits_BV, Cache(layers, cache.lengths_B + 1)


# `generate` owns a loop, so it compiles what it calls; whoever has another loop
# compiles for it. The model is static: it is hashed by its configuration.
_compiled_prefill = compiling.jit(prefill, static_argnums=(0, 4))


@compiling.jit
def _first_token(seed, logits_BV, temperature, top_p):
  key, used = jax.random.split(jax.random.key(seed))
  return sample(used, logits_BV, temperature, top_p), key


@functools.partial(compiling.jit, static_argnums=(0,), donate_argnums=(3,))
def _next_token(model, weights, tokens_B, cache, key, temperature, top_p):
  logits_BV, cache = decode(model, weights, tokens_B, cache)
  key, used = jax.random.split(key)
  return sample(used, logits_BV, temperature, top_p), cache, key


def generate(
  model: Transformer,
  weights: Weights,
  prompt: np.ndarray,
  max_new_tokens: int,
  *,
  temperature: float = 0.0,
  top_p: float = 1.0,
  seed: int = 0,
  end_ids: Collection[int] = (),
) -> Iterator[int]:
  """Continues one prompt, token by token, until eos or the limit.

  Args:
    model: the model.
    weights: in the compute dtype; see `stack.taken_apart`.
    prompt: int [L], at least one token.
    max_new_tokens: limit; also stops where the context is full.
    temperature: 0 is greedy.
    top_p: nucleus.
    seed: of the draws.
    end_ids: each ends the text; none is yielded.

  Yields:
    Token ids.

  Raises:
    PromptError: the prompt is empty or doesn't fit the context.
    NonFiniteError: the logits hold something that is no number.
  """
  length, limit = len(prompt), model.config.context_length
  if not 0 < length < limit:
    raise PromptError(
      f'the prompt has {length} tokens; the context of '
      f'{limit} takes 1 to {limit - 1}'
    )
  max_new_tokens = min(max_new_tokens, limit - length)
  tokens_BL = np.zeros((1, _padded(length, PROMPT_MULTIPLE, limit)), np.int32)
  tokens_BL[0, :length] = prompt
  logits_BV, cache = _compiled_prefill(
    model,
    weights,
    tokens_BL,
    np.array([length], np.int32),
    _padded(length + max_new_tokens, CACHE_MULTIPLE, limit),
  )
  temperature, top_p = np.float32(temperature), np.float32(top_p)
  tokens_B, key = _first_token(np.uint32(seed), logits_BV, temperature, top_p)
  for produced in range(1, max_new_tokens + 1):
    token = int(tokens_B[0])
    if token == NO_TOKEN:
      raise NonFiniteError(
        f'the logits of token {produced} hold something that is no number; the '
        'weights are broken, or overflow in this precision'
      )
    if token in end_ids:
      return
    yield token
    if produced < max_new_tokens:
      tokens_B, cache, key = _next_token(
        model, weights, tokens_B, cache, key, temperature, top_p
      )
