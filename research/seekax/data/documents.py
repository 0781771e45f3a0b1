"""Tokenized documents, read by number, and the pieces they are cut into."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


def frame(tokens: np.ndarray, bos_id: int, eos_id: int) -> np.ndarray:
  """Returns int32 [bos, tokens..., eos]."""
  return np.concatenate(([bos_id], tokens, [eos_id])).astype(np.int32)


class Documents(Protocol):
  """Framed documents.

  Attributes:
    lengths: int64 [n], number of tokens of each, with bos and eos.
  """

  lengths: np.ndarray

  def read(self, number: int) -> np.ndarray:
    """Returns the int32 tokens [bos, tokens..., eos] of a document."""

  def name(self, number: int) -> str:
    """Returns the name that messages use for a document."""


class InMemory:
  """Documents that are held in memory as arrays."""

  def __init__(self, tokens: Sequence[np.ndarray], names: Sequence[str] = ()):
    """Takes int32 arrays and their names, by default their numbers."""
    self.lengths = np.array([len(t) for t in tokens], np.int64)
    self._tokens, self._names = tokens, names

  def read(self, number: int) -> np.ndarray:
    """See `Documents`."""
    return self._tokens[number]

  def name(self, number: int) -> str:
    """See `Documents`."""
    return self._names[number] if self._names else str(number)


class Chosen:
  """A selection of another object's documents, in a new order."""

  def __init__(self, parent: Documents, numbers: np.ndarray):
    """Takes int64 [n] numbers of the parent's documents."""
    self.lengths = parent.lengths[numbers]
    self._parent, self._numbers = parent, numbers

  def read(self, number: int) -> np.ndarray:
    """See `Documents`."""
    return self._parent.read(int(self._numbers[number]))

  def name(self, number: int) -> str:
    """See `Documents`."""
    return self._parent.name(int(self._numbers[number]))


class Joined:
  """The documents of several objects, one after the other."""

  def __init__(self, parents: Sequence[Documents]):
    self.lengths = np.concatenate([parent.lengths for parent in parents])
    self._parents = parents
    self._ends = np.cumsum([len(parent.lengths) for parent in parents])

  def _find(self, number: int) -> tuple[Documents, int]:
    index = int(np.searchsorted(self._ends, number, 'right'))
    parent = self._parents[index]
    return parent, number - int(self._ends[index]) + len(parent.lengths)

  def read(self, number: int) -> np.ndarray:
    """See `Documents`."""
    parent, number = self._find(number)
    return parent.read(number)

  def name(self, number: int) -> str:
    """See `Documents`."""
    parent, number = self._find(number)
    return parent.name(number)


class Pieces:
  """Cuts documents evenly so that none has over 1/num_shards of all tokens.

  Otherwise, while one shard reads a longer document, the others would repeat
  theirs. The rule also gives every shard at least one piece, however few the
  documents, if they have at least num_shards tokens. Order and tokens stay.

  Attributes:
    num_tokens: total number of tokens.
  """

  def __init__(self, documents: Documents, num_shards: int):
    lengths = documents.lengths
    share = max(int(lengths.sum()) // num_shards, 1)
    self.num_tokens = int(lengths.sum())
    self._documents = documents
    self._parts = np.maximum(-(-lengths // share), 1)
    self._ends = np.cumsum(self._parts)

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def locate(self, number: int) -> tuple[int, int]:
    """Returns (document, number of the part within it) of a piece."""
    document = int(np.searchsorted(self._ends, number, 'right'))
    first = self._ends[document] - self._parts[document]
    return document, number - int(first)

  def is_whole(self, number: int) -> bool:
    """Whether a piece is a whole document."""
    return bool(self._parts[self.locate(number)[0]] == 1)

  def any_whole(self) -> bool:
    """Whether any document is left uncut."""
    return bool((self._parts == 1).any())

  def read(self, number: int) -> np.ndarray:
    """Returns the int32 tokens of a piece."""
    document, part = self.locate(number)
    tokens, parts = self._documents.read(document), int(self._parts[document])
    size, longer = divmod(len(tokens), parts)
    start = part * size + min(part, longer)
    return tokens[start : start + size + (part < longer)]

  def name(self, number: int) -> str:
    """Names a piece in messages: its document and its part."""
    document, part = self.locate(number)
    name, parts = self._documents.name(document), int(self._parts[document])
    return name if parts == 1 else f'{name}, part {part + 1} of {parts}'
