"""The endless order of one logical shard's documents, by position."""

from collections.abc import Callable, Sequence
import hashlib
import sys

import grain
import numpy as np

from seekax.configuration.data import DataConfig
from seekax.data.documents import Pieces
from seekax.data.mixing import document_rates, Turns
from seekax.data.packing import Piece
from seekax.data.shards import CorruptRecordError


class ShardOrder:
  """Takes pieces s, s + S, s + 2S, ... of each source's global order.

  That order has each piece once per epoch, and each epoch is shuffled
  differently. The pattern of the sources is the same for every shard.
  """

  def __init__(
    self,
    pieces: Sequence[Pieces],
    weights: Sequence[float],
    config: DataConfig,
    augment: Callable[..., np.ndarray],
    shard: int,
  ):
    """Takes the arguments of `pipeline.shard_rows`."""
    self._pieces, self._config = pieces, config
    self._augment, self._shard = augment, shard
    means = [p.num_tokens / len(p) for p in pieces]
    self._turns = Turns(document_rates(weights, means))
    self._orders = [
      grain.MapDataset.range(len(p))
      .shuffle(seed=_shuffle_seed(config.seed, source))
      .repeat()
      for source, p in enumerate(pieces)
    ]

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> Piece:
    source, turn = self._turns[index]
    place = turn * self._config.num_shards + self._shard
    number = self._orders[source][place]
    assert number is not None  # Only what is filtered out would be.
    number = int(number)
    pieces = self._pieces[source]
    try:
      tokens = pieces.read(number)
    except CorruptRecordError as error:
      if not self._config.skip_corrupt:
        raise
      return Piece(np.zeros(0, np.int32), source, number, str(error))
    document, part = pieces.locate(number)
    epoch = place // len(pieces)
    tokens = self._augment(
      tokens, pieces.is_whole(number), source, document, part, epoch
    )
    return Piece(tokens, source, number)


def _shuffle_seed(seed: int, source: int) -> int:
  """A 32-bit seed that other runs and sources don't come near.

  grain shuffles epoch e with seed + e, so with plain seeds the second epoch of
  run 0 would have the order of the first epoch of run 1.
  """
  text = f'{seed}/{source}' if source else str(seed)
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'big')
