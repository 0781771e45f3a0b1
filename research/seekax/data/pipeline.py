"""The pipeline: from tokenized documents to batches, with an exact position.

The order of the data belongs to the run, not to the machines that read it. It
is defined over `data.num_shards` logical shards: row r of a global batch comes
from shard r mod S, and no shard knows of the others.
"""

from collections.abc import Sequence
import hashlib
import json
from typing import Any

from flax import struct
import grain
import numpy as np

from seekax import config as config_lib
from seekax.data import packing, sources
from seekax.data import tokenizer as tokenizer_lib

# Raise it with every change to the order or the content of the batches.
_FORMAT_VERSION = 1


@struct.dataclass
class Batch:
  """Packed sequences, int32.

  Attributes:
    tokens_BL: input tokens.
    targets_BL: the token after each input token.
    positions_BL: 0 to L-1, or from 0 again at each new document if these are
      isolated.
    segments_BL: number of the input token's document inside the row, from 1.
    target_segments_BL: the same of the target token. It differs from
      segments_BL where a document ends.
  """

  tokens_BL: np.ndarray
  targets_BL: np.ndarray
  positions_BL: np.ndarray
  segments_BL: np.ndarray
  target_segments_BL: np.ndarray


class BatchIterator:
  """Endless batches, with a position that can be saved as JSON.

  Reading doesn't run ahead: the position is always that of the last batch
  handed out.
  """

  def __init__(
    self,
    shards: Sequence[grain.DatasetIterator],
    rows_per_shard: int,
    isolate_documents: bool,
  ):
    self._shards = shards
    self._rows_per_shard = rows_per_shard
    self._isolate_documents = isolate_documents

  def __iter__(self) -> 'BatchIterator':
    return self

  def __next__(self) -> Batch:
    rows = [
      next(shard) for _ in range(self._rows_per_shard) for shard in self._shards
    ]
    tokens = np.stack([row.tokens_R for row in rows])
    segments = np.stack([row.segments_R for row in rows])
    return Batch(
      tokens_BL=tokens[:, :-1],
      targets_BL=tokens[:, 1:],
      positions_BL=_positions(segments[:, :-1], self._isolate_documents),
      segments_BL=segments[:, :-1],
      target_segments_BL=segments[:, 1:],
    )

  def get_state(self) -> dict[str, Any]:
    """Returns the position after the batches so far; JSON can hold it."""
    return {
      'version': _FORMAT_VERSION,
      'shards': [shard.get_state() for shard in self._shards],
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a position that `get_state` returned for the same data.

    Whether the data is the same is what `fingerprint` is for.

    Raises:
      DataError: the position is of another format or number of shards.
    """
    version, shards = state.get('version'), state.get('shards', ())
    if version != _FORMAT_VERSION or len(shards) != len(self._shards):
      raise sources.DataError(
        f'the saved data position has format {version} and {len(shards)} '
        f'shards, this run has format {_FORMAT_VERSION} and '
        f'{len(self._shards)}; set data.num_shards as it was'
      )
    for shard, shard_state in zip(self._shards, shards, strict=True):
      shard.set_state(shard_state)


def tokenize(
  documents: Sequence[sources.Document], tokenizer: tokenizer_lib.Tokenizer
) -> list[np.ndarray]:
  """Returns each document as int32 [bos, tokens..., eos]."""
  texts = [document.text for document in documents]
  return [
    packing.frame(tokens, tokenizer.bos_id, tokenizer.eos_id)
    for tokens in tokenizer.encode_many(texts)
  ]


def batches(
  documents_tokens: Sequence[np.ndarray], config: config_lib.DataConfig
) -> BatchIterator:
  """Builds the endless stream of training batches.

  Args:
    documents_tokens: int32 documents with their BOS and EOS, as `tokenize`
      returns them. One that is longer than a shard's share is cut.
    config: the `data` group.

  Raises:
    DataError: all documents together don't fill one batch.
  """
  num_tokens = sum(map(len, documents_tokens))
  batch_tokens = config.batch_size * (config.sequence_length + 1)
  if num_tokens < batch_tokens:
    raise sources.DataError(
      f'the training text has {num_tokens} tokens, one batch takes '
      f'{batch_tokens} (data.batch_size={config.batch_size} x '
      f'(data.sequence_length={config.sequence_length} + 1)); lower one of '
      'them or give more text'
    )
  pieces = packing.cut_to_share(documents_tokens, config.num_shards)
  shards = [
    iter(shard_rows(pieces, config, shard))
    for shard in range(config.num_shards)
  ]
  return BatchIterator(
    shards, config.batch_size // config.num_shards, config.isolate_documents
  )


def shard_rows(
  pieces: Sequence[np.ndarray], config: config_lib.DataConfig, shard: int
) -> grain.IterDataset:
  """The endless rows of one logical shard, [sequence_length + 1] tokens each.

  The shard takes documents s, s + S, s + 2S, ... of an endless global order,
  in which each document stands once per epoch and each epoch is shuffled anew.
  """
  order = (
    grain.MapDataset.source(pieces)
    .shuffle(seed=_shuffle_seed(config.seed))
    .repeat()
  )
  # Reading threads would put the state ahead of the rows handed out.
  documents = order[shard :: config.num_shards].to_iter_dataset(
    grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  )
  return packing.PackedIterDataset(documents, config.sequence_length + 1)


def fingerprint(
  documents: Sequence[sources.Document],
  tokenizer: tokenizer_lib.Tokenizer,
  config: config_lib.DataConfig,
) -> str:
  """SHA-256 over all that decides the order and the content of the batches.

  A saved position has a meaning only for data of the same fingerprint.
  """
  decisive = {
    'version': _FORMAT_VERSION,
    'documents': [(d.name, sources.sha256(d.text)) for d in documents],
    'tokenizer': sources.sha256(tokenizer.to_json()),
    'sequence_length': config.sequence_length,
    'batch_size': config.batch_size,
    'num_shards': config.num_shards,
    'seed': config.seed,
    'isolate_documents': config.isolate_documents,
  }
  return sources.sha256(json.dumps(decisive, sort_keys=True))


def _shuffle_seed(seed: int) -> int:
  """A 32-bit seed far from that of the next run.

  grain shuffles epoch e by seed + e: run 0 would see in its second epoch what
  run 1 sees in its first.
  """
  return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], 'big')


def _positions(segments_BL: np.ndarray, isolate_documents: bool) -> np.ndarray:
  positions_BL = np.broadcast_to(
    np.arange(segments_BL.shape[1], dtype=np.int32), segments_BL.shape
  )
  if not isolate_documents:
    return positions_BL
  starts_BL = np.diff(segments_BL, axis=1, prepend=0) > 0
  last_start_BL = np.maximum.accumulate(
    np.where(starts_BL, positions_BL, 0), axis=1
  )
  return positions_BL - last_start_BL
