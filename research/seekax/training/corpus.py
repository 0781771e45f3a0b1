"""The text of a run: training batches and held-out documents."""

import dataclasses
import logging
from typing import Any

import numpy as np

from seekax.config import Config, ConfigError, DataConfig
from seekax.data import compression, pipeline, sources, split
from seekax.data import tokenizer as tokenizer_lib
from seekax.data.augmentation import Augmentation
from seekax.data.documents import Chosen, Documents, InMemory, Joined
from seekax.data.formats import Document
from seekax.data.shards import CorruptRecordError, TokenFolder
from seekax.data.tokenizer import Tokenizer

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Tokenized text.

  Attributes:
    tokenizer: what the tokens mean.
    batches: endless training batches with a position.
    train_documents: how many.
    train_bytes: UTF-8 bytes of the training documents.
    train_tokens: their tokens, bos and eos included.
    heldout: int32 [bos, tokens..., eos] of every held-out document.
    heldout_bytes: UTF-8 bytes of each.
    compression: what gzip and xz make of the held-out documents.
    fingerprint: of everything that decides the batches and the yardstick.
  """

  tokenizer: Tokenizer
  batches: pipeline.BatchIterator
  train_documents: int
  train_bytes: int
  train_tokens: int
  heldout: list[np.ndarray]
  heldout_bytes: list[int]
  compression: compression.Compression
  fingerprint: str

  def evaluated(self, max_bytes: int) -> list[int]:
    """Held-out documents for one evaluation, all if max_bytes is 0.

    They are ordered by the hash of their names, so that the first ones are a
    fair pick.
    """
    if not max_bytes:
      return list(range(len(self.heldout)))
    sums = np.cumsum(self.heldout_bytes)
    return list(range(max(int(np.searchsorted(sums, max_bytes, 'right')), 1)))


@dataclasses.dataclass(frozen=True)
class _Read:
  """What one source holds, its texts first."""

  weight: float
  texts: list[Document]
  folders: list[TokenFolder]

  def keys(self, by_name: bool) -> np.ndarray:
    of_texts = split.name_keys if by_name else split.content_keys
    return np.concatenate(
      [of_texts(self.texts), *(folder.keys for folder in self.folders)]
    )


def load(
  config: Config,
  tokenizer: Tokenizer | None = None,
  process: int = 0,
  num_processes: int = 1,
) -> Corpus:
  """Reads, splits and tokenizes the source.

  Args:
    config: the run.
    tokenizer: the one that the run's weights know, if they know one.
    process: the number of this process, which reads its own shards alone.
    num_processes: of the run.

  Raises:
    DataError: the source or the tokenizer can't be used.
    ConfigError: the tokenizer is larger than the model's vocabulary.
  """
  parsed = sources.parse(config.data.source)
  reads = [_read(source, config.data) for source in parsed]
  reads, held = _split(reads, config.data)
  parts = np.split(held, np.cumsum([_count(read) for read in reads])[:-1])
  train_texts = [
    [d for d, out in zip(read.texts, part, strict=False) if not out]
    for read, part in zip(reads, parts, strict=True)
  ]
  tokenizer = _find_tokenizer(config, tokenizer, reads, sum(train_texts, []))
  parts_train = [
    _training_part(read, texts, part, source, tokenizer)
    for read, texts, part, source in zip(
      reads, train_texts, parts, parsed, strict=True
    )
  ]
  heldout, held_texts = [], []
  for read, part in zip(reads, parts, strict=True):
    documents, texts = _heldout_part(read, part, tokenizer, config.data)
    heldout += documents
    held_texts += texts
  heldout.sort(key=lambda held: sources.sha256(held.document.name))
  held_texts.sort(key=lambda document: sources.sha256(document.name))
  tokens = [documents for documents, _ in parts_train]
  return Corpus(
    tokenizer=tokenizer,
    batches=pipeline.mixed_batches(
      [
        pipeline.Ingredient(read.weight, documents)
        for read, documents in zip(reads, tokens, strict=True)
      ],
      config.data,
      Augmentation(tokenizer, config.data),
      process,
      num_processes,
    ),
    train_documents=int((~held).sum()),
    train_bytes=sum(num_bytes for _, num_bytes in parts_train),
    train_tokens=sum(int(documents.lengths.sum()) for documents in tokens),
    heldout=[entry.tokens for entry in heldout],
    heldout_bytes=[entry.num_bytes for entry in heldout],
    compression=compression.bits_per_byte([h.document for h in heldout]),
    fingerprint=pipeline.fingerprint(
      sum(train_texts, []) + held_texts,
      tokenizer,
      config.data,
      _mixture(reads, train_texts, config.data),
    ),
  )


def _read(source: sources.Source, config: DataConfig) -> _Read:
  folders = [
    TokenFolder(path, prefix, config.skip_corrupt)
    for path, prefix in zip(source.paths, source.prefixes, strict=True)
    if sources.is_tokens(path)
  ]
  return _Read(source.weight, sources.read_text(source), folders)


def _count(read: _Read) -> int:
  return len(read.texts) + sum(len(f.lengths) for f in read.folders)


def _split(
  reads: list[_Read], config: DataConfig
) -> tuple[list[_Read], np.ndarray]:
  """Chooses what is held out; an only text is cut in two.

  Returns:
    (what was read, bool [n]: held out, for all documents of all sources).
  """
  if len(reads) == 1 and _count(reads[0]) == 1 and reads[0].texts:
    halves = split.split_lines(reads[0].texts[0], config.heldout_fraction)
    only = dataclasses.replace(reads[0], texts=list(halves))
    return [only], np.array([False, True])
  # What is held out of the library stays so when another Python changes it.
  by_name = config.source == sources.STDLIB
  keys = np.concatenate([read.keys(by_name) for read in reads])
  return reads, split.choose_heldout(keys, config.heldout_fraction)


def _find_tokenizer(
  config: Config,
  tokenizer: Tokenizer | None,
  reads: list[_Read],
  train_texts: list[Document],
) -> Tokenizer:
  """The run's tokenizer, which is that of every folder of tokens.

  Raises:
    DataError: two of them differ.
    ConfigError: it is larger than the model's vocabulary.
  """
  folders = [folder for read in reads for folder in read.folders]
  if tokenizer is None and config.data.tokenizer:
    tokenizer = tokenizer_lib.load(config.data.tokenizer)
  elif tokenizer is None and folders:
    tokenizer = folders[0].tokenizer
  elif tokenizer is None:
    controls = tokenizer_lib.FIM if config.data.fim_rate else ()
    tokenizer = tokenizer_lib.for_corpus(
      train_texts, config.model.vocab_size, controls
    )
  for folder in folders:
    if folder.tokenizer.to_json() != tokenizer.to_json():
      raise sources.DataError(
        f'{folder.path} was written with another tokenizer than the run has '
        '(of its weights, data.tokenizer, or another folder); tokenize the '
        'text again with that one'
      )
  if tokenizer.vocab_size > config.model.vocab_size:
    raise ConfigError(
      f'the tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size is '
      f'{config.model.vocab_size}; raise it'
    )
  return tokenizer


def _training_part(
  read: _Read,
  texts: list[Document],
  held: np.ndarray,
  source: sources.Source,
  tokenizer: Tokenizer,
) -> tuple[Documents, int]:
  """A source's documents to train on, and the bytes of their text."""
  if held.all():
    raise sources.DataError(
      f'data.heldout_fraction holds out every document of {source}; lower it '
      'or give the source more documents'
    )
  names = [document.name for document in texts]
  parts = []
  if texts:
    parts.append(InMemory(pipeline.tokenize(texts, tokenizer), names))
  num_bytes = sum(len(document.text.encode()) for document in texts)
  start = len(read.texts)
  for folder in read.folders:
    chosen = np.flatnonzero(~held[start : start + len(folder.lengths)])
    parts.append(Chosen(folder, chosen))
    num_bytes += int(folder.num_bytes[chosen].sum())
    start += len(folder.lengths)
  return Joined(parts), num_bytes


@dataclasses.dataclass(frozen=True)
class _Heldout:
  document: Document
  tokens: np.ndarray
  num_bytes: int


def _heldout_part(
  read: _Read, held: np.ndarray, tokenizer: Tokenizer, config: DataConfig
) -> tuple[list[_Heldout], list[Document]]:
  """A source's held-out documents, and those of them that were read as text."""
  texts = [d for d, out in zip(read.texts, held, strict=False) if out]
  result = [
    _Heldout(document, tokens, len(document.text.encode()))
    for document, tokens in zip(
      texts, pipeline.tokenize(texts, tokenizer), strict=True
    )
  ]
  start = len(read.texts)
  for folder in read.folders:
    for number in np.flatnonzero(held[start : start + len(folder.lengths)]):
      try:
        tokens = folder.read(int(number))
      except CorruptRecordError as error:
        if not config.skip_corrupt:
          raise
        _logger.warning('skipped, of the held-out documents: %s', error)
        continue
      text = tokenizer.decode(tokens[1:-1])
      document = Document(folder.name(int(number)), text)
      size = int(folder.num_bytes[number])
      result.append(_Heldout(document, tokens, size))
    start += len(folder.lengths)
  return result, texts


def _mixture(
  reads: list[_Read], train_texts: list[list[Document]], config: DataConfig
) -> list[Any]:
  """What the texts of a single source don't say; [] if there is nothing."""
  if len(reads) == 1 and not reads[0].folders:
    return []
  return [
    config.heldout_fraction,
    *(
      [read.weight, len(texts), [folder.sha256 for folder in read.folders]]
      for read, texts in zip(reads, train_texts, strict=True)
    ),
  ]
