"""Chooses the held-out documents, so that no text is on both sides."""

from collections.abc import Iterator, Sequence
import hashlib
import math

import numpy as np

from seekax.data.reading_rules import DataError, Document

_BLOCK_CHARACTERS = 1 << 20


def content_keys(documents: Sequence[Document]) -> np.ndarray:
  """Keys from the content: copies get equal keys, also across sources.

  Returns:
    uint64 [n], the first bytes of each text's SHA-256.
  """
  return np.array([key(document.text) for document in documents], np.uint64)


def name_keys(documents: Sequence[Document]) -> np.ndarray:
  """Keys from the names; copies of a text get the key of the first one.

  This is for sources whose texts change while their names stay, such as the
  library of another Python version: the same documents stay held out.

  Returns:
    uint64 [n].
  """
  first = {}
  for document in documents:
    first.setdefault(document.text, key(document.name))
  return np.array([first[d.text] for d in documents], np.uint64)


def key(text: str) -> int:
  """The first 64 bits of a text's SHA-256."""
  # Python puts surrogates into a file name that isn't UTF-8.
  content = text.encode('utf-8', 'surrogateescape')
  return int.from_bytes(hashlib.sha256(content).digest()[:8], 'big')


def choose_heldout(keys: np.ndarray, heldout_fraction: float) -> np.ndarray:
  """Holds out the documents whose keys are below a threshold.

  Adding documents never moves another one to the other side.

  Args:
    keys: uint64 [n].
    heldout_fraction: expected share of documents.

  Returns:
    bool [n], with both values present.

  Raises:
    DataError: one of the two sides would be empty.
  """
  fractions = keys.astype(np.float64) / 2**64
  held = fractions < heldout_fraction
  if not held.any():
    least = fractions.min(initial=1.0)
    raise DataError(
      f'data.heldout_fraction={heldout_fraction} holds out none of '
      f'{len(keys)} documents; raise it to {math.ceil(least * 1e4) / 1e4} '
      'or give more documents'
    )
  if held.all():
    most = fractions.max()
    raise DataError(
      f'data.heldout_fraction={heldout_fraction} holds out all '
      f'{len(keys)} documents; lower it to {math.floor(most * 1e4) / 1e4} '
      'or give more documents'
    )
  return held


def split_lines(
  document: Document, heldout_fraction: float
) -> tuple[Document, Document]:
  """Cuts a single document: its last lines (at least one) are held out.

  Returns:
    The parts `<name>#train` and `<name>#heldout`.

  Raises:
    DataError: no line would be left to train on.
  """
  if document.mark:
    raise DataError(
      f'{document.name} is the only document, a conversation, which can not be '
      'cut into one to train on and one held out; give more'
    )
  text = document.text
  num_lines = sum(len(text[a:b].splitlines()) for a, b in _blocks(text))
  num_heldout = math.ceil(num_lines * heldout_fraction)
  if num_heldout >= num_lines:
    raise DataError(
      f'{document.name} is the only document and has {num_lines} line(s), of '
      f'which data.heldout_fraction={heldout_fraction} holds out '
      f'{num_heldout}; give more lines or documents, or lower the fraction'
    )
  end = _end_of_lines(text, num_lines - num_heldout)
  return (
    Document(f'{document.name}#train', text[:end]),
    Document(f'{document.name}#heldout', text[end:]),
  )


def _end_of_lines(text: str, count: int) -> int:
  """Returns the offset at which the first `count` lines end."""
  for start, end in _blocks(text):
    lines = text[start:end].splitlines(keepends=True)
    if len(lines) >= count:
      return start + sum(map(len, lines[:count]))
    count -= len(lines)
  return len(text)


def _blocks(text: str) -> Iterator[tuple[int, int]]:
  """Yields blocks of whole lines; a list of all would outgrow the text."""
  start = 0
  while start < len(text):
    newline = text.find('\n', start + _BLOCK_CHARACTERS)
    end = newline + 1 or len(text)
    yield start, end
    start = end
