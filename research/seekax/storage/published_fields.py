"""Checked access to the fields of a published config.json."""

from typing import NoReturn

from seekax.files import JsonObject, printable, quoted
from seekax.storage.manifest import StorageError

MAX_COUNT = 2**31
_MAX_NUMBER = 1e30


# Values with which a field changes nothing; a missing field is always neutral.
NEUTRAL = {
  'attention_bias': (False,),
  'mlp_bias': (False,),
  'hidden_act': ('silu',),
  'tie_word_embeddings': (False,),
  'moe_layer_freq': (1,),
  'sliding_window': (None,),
  'partial_rotary_factor': (None, 1),
  'pretraining_tp': (1,),
  'attn_output_gate': (False,),
  'use_qk_norm': (False,),
  'index_topk': (None,),
}


class Fields:
  """A config.json's fields, with errors that name them."""

  def __init__(self, published: JsonObject, where: str):
    self.published, self.where = published, where

  def refuse(self, name: str, why: str) -> NoReturn:
    value = quoted(self.published.get(name))
    raise StorageError(
      f'{self.where}: {printable(name[:80])}={value} is not supported; {why}'
    )

  def count(self, name: str, default: int | None = None) -> int:
    """Reads a whole number; 0 where the file says null.

    Without a default, the field must be present.
    """
    value = self.published.get(name, default)
    if value is None and name in self.published:
      value = 0
    if value is None:
      raise StorageError(f'{self.where}: {name} is missing')
    if type(value) is not int or not 0 <= value < MAX_COUNT:
      self.refuse(name, 'a whole number is wanted')
    return value

  def number(self, name: str, default: float | None = None) -> float:
    """Reads a number of limited size; without a default, it must be present."""
    value = self.published.get(name, default)
    if value is None and name not in self.published:
      raise StorageError(f'{self.where}: {name} is missing')
    if type(value) not in (int, float) or not 0 <= value <= _MAX_NUMBER:
      self.refuse(name, 'a number is wanted')
    return float(value)

  def flag(self, name: str, default: bool) -> bool:
    value = self.published.get(name, default)
    if not isinstance(value, bool):
      self.refuse(name, 'true or false is wanted')
    return value

  def same(self, name: str, value: object) -> None:
    """Raises for a field that contradicts what the other fields imply."""
    found = self.published.get(name)
    if found is not None and found != value:
      self.refuse(name, f'the other fields imply {value!r}')
