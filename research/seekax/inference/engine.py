"""Generation: prefill with full MLA, then absorbed MLA on the cache.

Letters: B batch, L prompt positions, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from seekax.configuration.errors import InputError
from seekax.inference import sampling
from seekax.inference.cache import Cache, fill, init_cache
from seekax.inference.limits import check_sampling
from seekax.inference.sampling import sample, Settings
from seekax.machine import traced_programs
from seekax.model.attention import KeyValueCache, LatentCache
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights
from seekax.ops import devices
from seekax.parallel.rules import constrain


class PromptError(InputError):
  """A prompt that can not be continued."""


class NonFiniteError(RuntimeError):
  """A model says what is no number."""


# What programs take and give.
_RECORDS = (Cache, KeyValueCache, LatentCache, Settings, Weights)
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


@functools.lru_cache(maxsize=8)
def _programs(model: Transformer, room: int):
  """What `batches_of_tokens` calls: it owns a loop, so it compiles.

  Args:
    model: the model.
    room: positions of the cache.

  Returns:
    (prefill and the first tokens, one decoding step and the next tokens).
  """

  def first_tokens(weights, tokens_BL, lengths_B, seeds_B, how):
    logits_BV, cache = prefill(model, weights, tokens_BL, lengths_B, room)
    return *sample(sampling.keys(seeds_B), logits_BV, how), cache

  def next_tokens(weights, tokens_B, cache, keys_B, how):
    logits_BV, cache = decode(model, weights, tokens_B, cache)
    return *sample(keys_B, logits_BV, how), cache

  about = model.config, model.policy, model.compute, room, devices.present()
  keep = functools.partial(
    traced_programs.kept, description=repr(about), records=_RECORDS
  )
  return keep(first_tokens), keep(next_tokens, donate_argnums=(2,))


class Options(sampling.Options, total=False):
  """The keywords of `generate`."""

  seed: int
  end_ids: Collection[int]


def generate(
  model: Transformer,
  weights: Weights,
  prompt: np.ndarray,
  max_new_tokens: int,
  *,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  seed: int = 0,
  end_ids: Collection[int] = (),
) -> Iterator[int]:
  """Continues one prompt, token by token.

  Args:
    model: the model.
    weights: in the compute dtype; see `stack.taken_apart`.
    prompt: int [L], at least one token.
    max_new_tokens: limit; the text also stops where the context is full.
    temperature: see `sampling.Settings`, as for the next three.
    top_k: number of tokens.
    top_p: probability.
    min_p: share of the largest probability.
    seed: seed of the draws.
    end_ids: ids that end a text or a turn; none is yielded.

  Yields:
    Token ids.

  Raises:
    InputError: a setting can't be.
    PromptError: the prompt is empty or doesn't fit the context.
    NonFiniteError: the logits hold something that is no number.
  """
  how = sampling.settings(1, temperature, top_k, top_p, min_p)
  for tokens in batches_of_tokens(
    model, weights, [prompt], max_new_tokens, how, [seed], end_ids
  ):
    if tokens[0] is not None:
      yield tokens[0]


def batches_of_tokens(
  model: Transformer,
  weights: Weights,
  prompts: Sequence[np.ndarray],
  max_new_tokens: int,
  how: sampling.Settings,
  seeds: Sequence[int],
  end_ids: Collection[int] = (),
) -> Iterator[list[int | None]]:
  """Continues several prompts together, a token of each at a time.

  Args:
    model: the model.
    weights: in the compute dtype; see `stack.taken_apart`.
    prompts: int [L] each, at least one token.
    max_new_tokens: limit; a text also stops where the context is full.
    how: settings of every row.
    seeds: seed of every row's draws.
    end_ids: ids that end a text or a turn; none is yielded.

  Yields:
    One new token id per row, None for rows that have ended; as long as one
    hasn't.

  Raises:
    InputError: a seed is out of range.
    PromptError: a prompt is empty or doesn't fit the context.
    NonFiniteError: the logits hold something that is no number.
  """
  limit = model.config.context_length
  lengths = [len(prompt) for prompt in prompts]
  for length in lengths:
    if not 0 < length < limit:
      raise PromptError(
        f'the prompt has {length} tokens; the context of {limit} takes 1 to '
        f'{limit - 1}'
      )
  for seed in seeds:
    check_sampling(seed=seed)
  seeds_B = np.asarray(seeds, np.uint32)
  wanted = [min(max_new_tokens, limit - length) for length in lengths]
  if max(wanted, default=0) < 1:
    return
  width = _padded(max(lengths), PROMPT_MULTIPLE, limit)
  tokens_BL = np.zeros((len(prompts), width), np.int32)
  for row, prompt in enumerate(prompts):
    tokens_BL[row, : len(prompt)] = prompt
  room = max(map(sum, zip(lengths, wanted, strict=True)))
  first_tokens, next_tokens = _programs(
    model, _padded(room, CACHE_MULTIPLE, limit)
  )
  tokens_B, keys_B, cache = first_tokens(
    weights, tokens_BL, np.array(lengths, np.int32), seeds_B, how
  )
  alive = [count > 0 for count in wanted]
  for produced in range(1, max(wanted) + 1):
    found: list[int | None] = [None] * len(prompts)
    for row, token in enumerate(np.asarray(tokens_B).tolist()):
      alive[row] = alive[row] and token not in end_ids
      if not alive[row]:
        continue
      if token == sampling.NO_TOKEN:
        raise NonFiniteError(
          f'the logits of token {produced} hold something that is no number; '
          'the weights are broken, or overflow in this precision'
        )
      found[row] = token
      alive[row] = produced < wanted[row]
    if any(token is not None for token in found):
      yield found
    if not any(alive):
      return
    tokens_B, keys_B, cache = next_tokens(weights, tokens_B, cache, keys_B, how)
