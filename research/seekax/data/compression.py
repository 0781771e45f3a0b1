"""How far gzip and xz compress held-out text, to compare models with."""

from collections.abc import Sequence
import dataclasses
import gzip
import lzma

from seekax.data import sources


@dataclasses.dataclass(frozen=True)
class Compression:
  """Bits per UTF-8 byte of text."""

  gzip: float
  xz: float


def bits_per_byte(documents: Sequence[sources.Document]) -> Compression:
  """Compresses each document alone: total bits over total bytes.

  The settings are the strongest of the command-line tools, `gzip -9` and
  `xz -9e`; headers and checksums count.

  Raises:
    DataError: there is not one byte to compress.
  """
  texts = [document.text.encode('utf-8') for document in documents]
  num_bytes = sum(map(len, texts))
  if not num_bytes:
    raise sources.DataError('no text to compress; give a non-empty document')
  strongest = 9 | lzma.PRESET_EXTREME
  return Compression(
    gzip=8 * sum(len(gzip.compress(t, 9, mtime=0)) for t in texts) / num_bytes,
    xz=8
    * sum(len(lzma.compress(t, preset=strongest)) for t in texts)
    / num_bytes,
  )
