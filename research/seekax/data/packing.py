"""Packs documents end to end into rows; nothing is lost or padded."""

import dataclasses
import logging

import grain
import numpy as np

from seekax.data.reading_rules import DataError
from seekax.files import JsonObject

_logger = logging.getLogger(__name__)
# This many corrupt pieces in a row are no accident.
_MAX_CORRUPT_IN_A_ROW = 1000


@dataclasses.dataclass(frozen=True)
class Piece:
  """A document or a part of one.

  Attributes:
    tokens: int32, of any length.
    source: number of its source.
    number: number of the piece within its source.
    corrupt: why it can't be read, '' if it can.
  """

  tokens: np.ndarray
  source: int = 0
  number: int = 0
  corrupt: str = ''


@dataclasses.dataclass(frozen=True)
class Row:
  """A packed row of R tokens, int32.

  Attributes:
    tokens_R: the tokens.
    segments_R: number of each token's document inside the row, from 1.
    pieces: (source, number) of each of its pieces.
  """

  tokens_R: np.ndarray
  segments_R: np.ndarray
  pieces: tuple[tuple[int, int], ...] = ()


class PackedIterDataset(grain.IterDataset):
  """Concatenates the parent's `Piece`s and cuts them into `Row`s.

  The last, incomplete row of a finite parent is dropped. Corrupt pieces are
  skipped, named in the log and counted.

  `grain.experimental.ConcatThenSplitIterDataset` packs the same rows, but its
  state loses tokens when it passes through JSON (grain 0.2.18: a pair becomes
  a list and no longer equals its sentinel).
  """

  def __init__(self, parent: grain.IterDataset, row_length: int):
    super().__init__(parent)
    self._row_length = row_length

  def __iter__(self) -> grain.DatasetIterator:
    return _PackedIterator(iter(self._parent), self._row_length)


class _PackedIterator(grain.DatasetIterator):
  """State: the parent's before the current piece, and the offset in it."""

  def __init__(self, parent: grain.DatasetIterator, row_length: int):
    super().__init__(parent)
    self._row_length = row_length
    self._before_document = parent.get_state()
    self._piece = Piece(np.zeros(0, np.int32))
    self._offset = 0
    self._skipped = 0

  def __next__(self) -> Row:
    tokens_R = np.empty(self._row_length, np.int32)
    segments_R = np.empty(self._row_length, np.int32)
    filled, segment, pieces = 0, 1, []
    while filled < self._row_length:
      if self._offset >= len(self._piece.tokens):
        self._read_piece()
        segment += filled > 0
      part = self._piece.tokens[self._offset :][: self._row_length - filled]
      tokens_R[filled : filled + len(part)] = part
      segments_R[filled : filled + len(part)] = segment
      filled += len(part)
      self._offset += len(part)
      if len(part):
        pieces.append((self._piece.source, self._piece.number))
    return Row(tokens_R, segments_R, tuple(pieces))

  def _read_piece(self) -> None:
    for _ in range(_MAX_CORRUPT_IN_A_ROW):
      self._before_document = self._parent.get_state()
      self._piece, self._offset = next(self._parent), 0
      if not self._piece.corrupt:
        return
      self._skipped += 1
      _logger.warning('skipped: %s', self._piece.corrupt)
    raise DataError(
      f'{_MAX_CORRUPT_IN_A_ROW} corrupt records in a row, the last: '
      f'{self._piece.corrupt}'
    )

  def get_state(self) -> JsonObject:
    return {
      'before_document': self._before_document,
      'offset': self._offset,
      'skipped': self._skipped,
    }

  def set_state(self, state: JsonObject) -> None:
    self._parent.set_state(state['before_document'])
    self._skipped = state['skipped']
    self._read_piece()
    # Before the first document there is none, so no offset applies. A piece
    # that can't be read any more is skipped with the rest of it.
    if self._skipped == state['skipped']:
      self._offset = state['offset']
