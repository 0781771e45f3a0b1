"""Tokenized documents, read by number, and the pieces that shards take."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


def frame(tokens: np.ndarray, bos_id: int, eos_id: int) -> np.ndarray:
  """Returns int32 [bos, tokens..., eos]."""
  return np.concatenate(([bos_id], tokens, [eos_id])).astype(np.int32)


class Documents(Protocol):
  """Framed documents.

  Attributes:
    lengths: int64 [n], tokens of each, bos and eos included.
  """

  lengths: np.ndarray

  def read(self, number: int) -> np.ndarray:
    """Returns the int32 tokens [bos, tokens..., eos] of a document."""

  def name(self, number: int) -> str:
    """Returns what to call a document in a message."""


class InMemory:
  """Documents that are arrays already."""

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
  """Some documents of others, in a new order."""

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
  """The documents of several, one after the other."""

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
  """Documents cut evenly so that none has over 1/num_shards of all tokens.

  A shard that read a longer document would repeat the others meanwhile. The
  rule also makes at least one piece per shard, however few the documents, if
  they have at least num_shards tokens. Order and tokens stay as they are.

  Attributes:
    num_tokens: of all pieces together.
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
    """Returns (document, which part of it) of a piece."""
    document = int(np.searchsorted(self._ends, number, 'right'))
    first = self._ends[document] - self._parts[document]
    return document, number - int(first)

  def is_whole(self, number: int) -> bool:
    """Whether a piece is all of its document."""
    return bool(self._parts[self.locate(number)[0]] == 1)

  def any_whole(self) -> bool:
    """Whether any document is left whole."""
    return bool((self._parts == 1).any())

  def read(self, number: int) -> np.ndarray:
    """Returns the int32 tokens of a piece."""
    document, part = self.locate(number)
    tokens, parts = self._documents.read(document), int(self._parts[document])
    size, longer = divmod(len(tokens), parts)
    start = part * size + min(part, longer)
    return tokens[start : start + size + (part < longer)]

  def name(self, number: int) -> str:
    """What to call a piece in a message: its document and its part."""
    document, part = self.locate(number)
    name, parts = self._documents.name(document), int(self._parts[document])
    return name if parts == 1 else f'{name}, part {part + 1} of {parts}'
