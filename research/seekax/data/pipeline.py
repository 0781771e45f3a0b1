"""From tokenized documents to batches, with an exact position.

The order of the data belongs to the run, not to the machines that read it. It
is defined over `data.num_shards` logical shards: row r of a global batch comes
from shard r mod S, and no shard knows of the others. A process reads the shards
that it owns and no other; shard s belongs to process s mod P.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import operator
from typing import Any, TypedDict

from flax import struct
import grain
import jax
import numpy as np

from seekax.arrays import Array
from seekax.configuration.data import DataConfig
from seekax.data import packing, sources
from seekax.data import tokenizer as tokenizer_lib
from seekax.data.documents import Documents, InMemory, Pieces
from seekax.data.order import ShardOrder
from seekax.files import JsonObject

# Raise this with every change to the order or the content of the batches.
_FORMAT_VERSION = 1
# Version of what `get_state` returns.
_STATE_VERSION = 2


class Position(TypedDict):
  """A place in the data, as JSON.

  Keys:
    version: of this format.
    num_shards: number of logical shards, of all processes.
    shards: each shard's own position, by its number.
  """

  version: int
  num_shards: int
  shards: dict[str, JsonObject]


@struct.dataclass
class Batch:
  """Packed sequences, int32.

  Attributes:
    tokens_BL: input tokens.
    targets_BL: the token after each input token.
    positions_BL: 0 to L-1, or counted from 0 in each document if documents are
      isolated.
    segments_BL: number of the input token's document within the row, from 1.
    target_segments_BL: number of the target token's document. It differs from
      segments_BL where a document ends.
  """

  tokens_BL: Array
  targets_BL: Array
  positions_BL: Array
  segments_BL: Array
  target_segments_BL: Array


@dataclasses.dataclass(frozen=True)
class Ingredient:
  """One source of a mixture.

  Attributes:
    weight: its share of the tokens; all weights add up to 1.
    documents: its documents, with bos and eos. One that is longer than a
      shard's share is cut.
  """

  weight: float
  documents: Documents


@dataclasses.dataclass(frozen=True)
class Records:
  """The documents in each row of a batch; their names are found on request."""

  rows: Sequence[Sequence[tuple[int, int]]]
  sources: Sequence[Pieces]

  def names(self) -> list[list[str]]:
    """The names of each row's documents, in their order in the row."""
    return [
      [self.sources[source].name(number) for source, number in row]
      for row in self.rows
    ]


class BatchIterator:
  """Endless batches, with a position that can be saved as JSON.

  Nothing is read ahead: the position is always that of the last batch that was
  returned.
  """

  def __init__(
    self,
    shards: Mapping[int, grain.DatasetIterator],
    pieces: Sequence[Pieces],
    config: DataConfig,
  ):
    """Takes the rows of some logical shards.

    Args:
      shards: the iterators of this process's shards, by number.
      pieces: the pieces of each source.
      config: the `data` group.
    """
    self._shards = dict(sorted(shards.items()))
    self._pieces = pieces
    self._config = config
    self._records = Records((), pieces)

  def __iter__(self) -> 'BatchIterator':
    return self

  def __next__(self) -> Batch:
    return self.take(self._config.batch_size // self._config.num_shards)

  def take(self, rows_per_shard: int) -> Batch:
    """Returns the next batch, with `rows_per_shard` rows of each shard."""
    rows = [
      next(shard)
      for _ in range(rows_per_shard)
      for shard in self._shards.values()
    ]
    self._records = Records([row.pieces for row in rows], self._pieces)
    tokens = np.stack([row.tokens_R for row in rows])
    segments = np.stack([row.segments_R for row in rows])
    return Batch(
      tokens_BL=tokens[:, :-1],
      targets_BL=tokens[:, 1:],
      positions_BL=_positions(segments[:, :-1], self._config.isolate_documents),
      segments_BL=segments[:, :-1],
      target_segments_BL=segments[:, 1:],
    )

  def records(self) -> Records:
    """Returns the documents in the last batch."""
    return self._records

  def skipped(self) -> int:
    """Number of corrupt records these shards skipped since the run began."""
    return sum(shard.get_state()['skipped'] for shard in self._shards.values())

  def get_state(self) -> Position:
    """Returns the position after the batches so far, as JSON values.

    It covers this process's shards; `merge_states` joins those of several.
    """
    return {
      'version': _STATE_VERSION,
      'num_shards': self._config.num_shards,
      'shards': {
        str(number): shard.get_state() for number, shard in self._shards.items()
      },
    }

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to a position that `get_state` returned for the same data.

    `fingerprint` tells whether the data is the same.

    Args:
      state: a position of this process, or of all, whatever their number was.

    Raises:
      DataError: the position is of another format or number of shards, or
        lacks a shard of this process.
    """
    state = _upgraded(state)
    version, num_shards = state.get('version'), state.get('num_shards', 0)
    if version != _STATE_VERSION or num_shards != self._config.num_shards:
      raise sources.DataError(
        f'the saved data position has format {version} and {num_shards} '
        f'shards, this run has format {_STATE_VERSION} and '
        f'{self._config.num_shards}; set data.num_shards as it was'
      )
    missing = [n for n in self._shards if str(n) not in state['shards']]
    if missing:
      raise sources.DataError(
        f'the saved data position lacks shard {missing[0]} of {num_shards}; '
        'merge the positions of all processes'
      )
    for number, shard in self._shards.items():
      shard.set_state(state['shards'][str(number)])


def _upgraded(state: Mapping[str, Any]) -> Mapping[str, Any]:
  """Converts a position of format 1, which lists all shards."""
  if state.get('version') != 1:
    return state
  shards = {
    str(n): {**shard, 'skipped': 0} for n, shard in enumerate(state['shards'])
  }
  return {
    'version': _STATE_VERSION,
    'num_shards': len(shards),
    'shards': shards,
  }


def merge_states(states: Sequence[Position]) -> Position:
  """Joins the positions of a run's processes.

  Raises:
    DataError: they are from different runs, or two have the same shard.
  """
  shards = {}
  for state in states:
    same_run = all(state[k] == states[0][k] for k in ('version', 'num_shards'))
    if not same_run or shards.keys() & state['shards'].keys():
      raise sources.DataError(
        'the data positions are not those of the processes of one run; take '
        'one of each process'
      )
    shards |= state['shards']
  return {**states[0], 'shards': dict(sorted(shards.items(), key=_number))}


def _number(entry: tuple[str, object]) -> int:
  return int(entry[0])


def micro_batches(batch: Batch, parts: int) -> list[Batch]:
  """Takes every parts-th row, so each part has the same rows of every shard."""
  return [
    jax.tree.map(operator.itemgetter(slice(part, None, parts)), batch)
    for part in range(parts)
  ]


def batches(
  documents_tokens: Sequence[np.ndarray], config: DataConfig
) -> BatchIterator:
  """Builds the endless training batches of one source, without augmentation.

  Args:
    documents_tokens: int32 documents with BOS and EOS, as
      `contents.tokenize` returns them.
    config: the `data` group.

  Raises:
    DataError: all documents together don't fill one batch.
  """
  ingredients = [Ingredient(1.0, InMemory(documents_tokens))]
  return mixed_batches(ingredients, config, lambda tokens, *_: tokens)


def mixed_batches(
  ingredients: Sequence[Ingredient],
  config: DataConfig,
  augment: Callable[..., np.ndarray],
  process: int = 0,
  num_processes: int = 1,
) -> BatchIterator:
  """Builds the endless stream of one process's part of the training batches.

  Args:
    ingredients: the sources.
    config: the `data` group; the same in all processes.
    augment: changes a document before packing, as `Augmentation`.
    process: number of this process.
    num_processes: number of processes; a divisor of data.num_shards.

  Returns:
    Batches whose row i·n + k is row i·S + s of the global batch, where s is the
    k-th of this process's n shards.

  Raises:
    DataError: all documents together don't fill one batch, or there are too
      many processes.
  """
  if config.num_shards % num_processes:
    raise sources.DataError(
      f'data.num_shards={config.num_shards} can not be shared out among '
      f'{num_processes} processes; take a divisor'
    )
  num_tokens = sum(int(i.documents.lengths.sum()) for i in ingredients)
  batch_tokens = config.batch_size * (config.sequence_length + 1)
  if num_tokens < batch_tokens:
    raise sources.DataError(
      f'the training text has {num_tokens} tokens, one batch takes '
      f'{batch_tokens} (data.batch_size={config.batch_size} x '
      f'(data.sequence_length={config.sequence_length} + 1)); lower one of '
      'them or give more text'
    )
  pieces = [Pieces(i.documents, config.num_shards) for i in ingredients]
  if config.fim_rate and not any(p.any_whole() for p in pieces):
    raise sources.DataError(
      'data.fim_rate rearranges whole documents, but all are so long that they '
      f'are cut for data.num_shards={config.num_shards}; lower it or give more '
      'documents'
    )
  weights = [ingredient.weight for ingredient in ingredients]
  shards = {
    shard: iter(shard_rows(pieces, weights, config, augment, shard))
    for shard in range(process, config.num_shards, num_processes)
  }
  return BatchIterator(shards, pieces, config)


def shard_rows(
  pieces: Sequence[Pieces],
  weights: Sequence[float],
  config: DataConfig,
  augment: Callable[..., np.ndarray],
  shard: int,
) -> grain.IterDataset:
  """The endless rows of one logical shard, [sequence_length + 1] tokens each.

  Args:
    pieces: the pieces of each source.
    weights: each source's share of the tokens.
    config: the `data` group.
    augment: changes a document before packing.
    shard: number of the shard.
  """
  order = ShardOrder(pieces, weights, config, augment, shard)
  # Reading threads would move the state ahead of the rows returned.
  documents = grain.MapDataset.source(order).to_iter_dataset(
    grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  )
  return packing.PackedIterDataset(documents, config.sequence_length + 1)


def fingerprint(
  documents: Sequence[sources.Document],
  tokenizer: tokenizer_lib.Tokenizer,
  config: DataConfig,
  mixture: Sequence[object] = (),
) -> str:
  """SHA-256 over everything that decides the order and content of batches.

  A saved position holds only for data of the same fingerprint. Features that
  are off don't count, so that older runs keep their fingerprint; nor does
  data.skip_corrupt, so that a run that met a corrupt record can resume.

  Args:
    documents: the texts.
    tokenizer: the tokenizer that encodes them.
    config: the `data` group.
    mixture: what else decides, as JSON: weights and folders of tokens.
  """
  decisive: dict[str, object] = {
    'version': _FORMAT_VERSION,
    'documents': [
      (d.name, sources.sha256(d.marked or d.text)) for d in documents
    ],
    'tokenizer': sources.sha256(tokenizer.to_json()),
    'sequence_length': config.sequence_length,
    'batch_size': config.batch_size,
    'num_shards': config.num_shards,
    'seed': config.seed,
    'isolate_documents': config.isolate_documents,
  }
  for key in ('fim_rate', 'split_punctuation_rate'):
    if value := getattr(config, key):
      decisive[key] = value
  if mixture:
    decisive['mixture'] = list(mixture)
  return sources.sha256(json.dumps(decisive, sort_keys=True))


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
