"""Packing: documents end to end, cut into rows, nothing lost or padded."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import grain
import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
  """A packed row of R tokens, int32.

  Attributes:
    tokens_R: the tokens.
    segments_R: number of each token's document inside the row, from 1.
  """

  tokens_R: np.ndarray
  segments_R: np.ndarray


def frame(tokens: np.ndarray, bos_id: int, eos_id: int) -> np.ndarray:
  """Returns int32 [bos, tokens..., eos]."""
  return np.concatenate(([bos_id], tokens, [eos_id])).astype(np.int32)


def cut_to_share(
  documents: Sequence[np.ndarray], num_shards: int
) -> list[np.ndarray]:
  """Cuts documents evenly so that none has over 1/num_shards of all tokens.

  A shard that read a longer document would repeat the others meanwhile. The
  rule also makes at least one piece per shard, however few the documents, if
  they have at least num_shards tokens. Order and tokens stay as they are.
  """
  share = max(sum(map(len, documents)) // num_shards, 1)
  return [
    piece
    for document in documents
    for piece in np.array_split(document, max(-(-len(document) // share), 1))
  ]


class PackedIterDataset(grain.IterDataset):
  """Concatenates the parent's arrays and cuts them into `Row`s.

  The last, incomplete row of a finite parent is dropped.

  `grain.experimental.ConcatThenSplitIterDataset` packs the same rows, but its
  state loses tokens on a way through JSON (grain 0.2.18: a pair becomes a list
  and no longer equals its sentinel).
  """

  def __init__(self, parent: grain.IterDataset, row_length: int):
    super().__init__(parent)
    self._row_length = row_length

  def __iter__(self) -> grain.DatasetIterator:
    return _PackedIterator(iter(self._parent), self._row_length)


class _PackedIterator(grain.DatasetIterator):
  """State: where the parent was before the current document, and the offset."""

  def __init__(self, parent: grain.DatasetIterator, row_length: int):
    super().__init__(parent)
    self._row_length = row_length
    self._before_document = parent.get_state()
    self._document = np.zeros(0, np.int32)
    self._offset = 0

  def __next__(self) -> Row:
    tokens_R = np.empty(self._row_length, np.int32)
    segments_R = np.empty(self._row_length, np.int32)
    filled, segment = 0, 1
    while filled < self._row_length:
      if self._offset >= len(self._document):
        self._before_document = self._parent.get_state()
        self._document = next(self._parent)
        self._offset = 0
        segment += filled > 0
      part = self._document[self._offset :][: self._row_length - filled]
      tokens_R[filled : filled + len(part)] = part
      segments_R[filled : filled + len(part)] = segment
      filled += len(part)
      self._offset += len(part)
    return Row(tokens_R, segments_R)

  def get_state(self) -> dict[str, Any]:
    return {'before_document': self._before_document, 'offset': self._offset}

  def set_state(self, state: dict[str, Any]) -> None:
    self._parent.set_state(state['before_document'])
    self._before_document = state['before_document']
    self._offset = state['offset']
    # Before the first document there is none whose offset could be 0.
    self._document = next(self._parent)
