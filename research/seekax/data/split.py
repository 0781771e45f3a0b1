"""The split: which documents are held out, so that no text is on both sides."""

from collections.abc import Sequence
import hashlib
import math

import numpy as np

from seekax.data.formats import DataError, Document


def content_keys(documents: Sequence[Document]) -> np.ndarray:
  """Keys by content: copies, also in other sources, share theirs.

  Returns:
    uint64 [n], the first bytes of each text's SHA-256.
  """
  return np.array([key(document.text) for document in documents], np.uint64)


def name_keys(documents: Sequence[Document]) -> np.ndarray:
  """Keys by name, but copies of a text take the first one's.

  For sources whose texts change while their names stay, such as the library of
  another Python: what was held out stays so.

  Returns:
    uint64 [n].
  """
  first = {}
  for document in documents:
    first.setdefault(document.text, key(document.name))
  return np.array([first[d.text] for d in documents], np.uint64)


def key(text: str) -> int:
  """The first 64 bits of a text's SHA-256."""
  # A file name that isn't UTF-8 reaches us with surrogates in it.
  content = text.encode('utf-8', 'surrogateescape')
  return int.from_bytes(hashlib.sha256(content).digest()[:8], 'big')


def choose_heldout(keys: np.ndarray, heldout_fraction: float) -> np.ndarray:
  """Holds out the documents whose key is in the lowest part of all keys.

  Adding documents never moves another one across.

  Args:
    keys: uint64 [n].
    heldout_fraction: expected share of documents.

  Returns:
    bool [n], both values occurring.

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
  """Cuts an only document: its last lines (at least one) are held out.

  Returns:
    The parts `<name>#train` and `<name>#heldout`.

  Raises:
    DataError: there would be no line left to train on.
  """
  if document.mark:
    raise DataError(
      f'{document.name} is the only document, a conversation, which can not be '
      'cut into one to train on and one held out; give more'
    )
  lines = document.text.splitlines(keepends=True)
  num_heldout = math.ceil(len(lines) * heldout_fraction)
  if num_heldout >= len(lines):
    raise DataError(
      f'{document.name} is the only document and has {len(lines)} line(s), of '
      f'which data.heldout_fraction={heldout_fraction} holds out '
      f'{num_heldout}; give more lines or documents, or lower the fraction'
    )
  return (
    Document(f'{document.name}#train', ''.join(lines[:-num_heldout])),
    Document(f'{document.name}#heldout', ''.join(lines[-num_heldout:])),
  )
