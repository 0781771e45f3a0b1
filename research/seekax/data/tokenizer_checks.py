"""What a tokenizer.json must hold before its text is trusted."""

from collections.abc import Sequence

import numpy as np
import tokenizers

from seekax.data import sources
from seekax.files import JsonObject


def parse(source: str) -> tokenizers.Tokenizer:
  try:
    return tokenizers.Tokenizer.from_str(source)
  except Exception as error:  # The library raises nothing more precise.
    raise sources.DataError(
      f'not a tokenizer.json of Hugging Face tokenizers ({error})'
    ) from error


def unique_keys(pairs: list[tuple[str, object]]) -> JsonObject:
  result = dict(pairs)
  if len(result) < len(pairs):
    seen = set()
    twice = next(k for k, _ in pairs if k in seen or seen.add(k))
    raise sources.DataError(
      f'the key {twice!r} occurs twice in one object; take the original file'
    )
  return result


def check_added_ids(
  added: Sequence[JsonObject], tokenizer: tokenizers.Tokenizer
) -> None:
  """Raises for a file some of whose ids the library silently replaces."""
  seen = set()
  for token in added:
    name, ours = token['content'], tokenizer.token_to_id(token['content'])
    if ours is None:
      raise sources.DataError(f'the added token {name!r} is no token')
    if ours != token['id']:
      raise sources.DataError(
        f'the added token {name!r} has id {token["id"]} but must '
        f'have {ours}, the next after the vocabulary; take the original file'
      )
    if name in seen:
      raise sources.DataError(
        f'the added token {name!r} occurs twice; take the original file'
      )
    seen.add(name)


def check_ids(vocabulary: dict[str, int]) -> None:
  """Raises for ids that two tokens share, or that don't fit int32."""
  names = {}
  for name, token_id in vocabulary.items():
    if token_id > np.iinfo(np.int32).max:
      raise sources.DataError(
        f'the token {name!r} has id {token_id}, which is out of range; take '
        'the original file'
      )
    if names.setdefault(token_id, name) != name:
      first, second = sorted((names[token_id], name))
      raise sources.DataError(
        f'the tokens {first!r} and {second!r} share the id {token_id}; take '
        'the original file'
      )
