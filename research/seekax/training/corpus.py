"""The text of a run: training batches and held-out documents."""

import dataclasses

import numpy as np

from seekax.config import Config, ConfigError
from seekax.data import compression, pipeline, sources
from seekax.data import tokenizer as tokenizer_lib
from seekax.data.tokenizer import Tokenizer


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


def load(config: Config, tokenizer: Tokenizer | None = None) -> Corpus:
  """Reads, splits and tokenizes the source.

  Args:
    config: the run.
    tokenizer: the one that the run's weights know, if they know one.

  Raises:
    DataError: the source or the tokenizer can't be used.
    ConfigError: the tokenizer is larger than the model's vocabulary.
  """
  documents = sources.read_documents(config.data.source)
  train, heldout = sources.split(documents, config.data.heldout_fraction)
  heldout.sort(key=lambda document: sources.sha256(document.name))
  if tokenizer is None and config.data.tokenizer:
    tokenizer = tokenizer_lib.load(config.data.tokenizer)
  elif tokenizer is None:
    tokenizer = tokenizer_lib.for_corpus(train, config.model.vocab_size)
  if tokenizer.vocab_size > config.model.vocab_size:
    raise ConfigError(
      f'the tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size is '
      f'{config.model.vocab_size}; raise it'
    )
  tokens = pipeline.tokenize(train, tokenizer)
  return Corpus(
    tokenizer=tokenizer,
    batches=pipeline.batches(tokens, config.data),
    train_documents=len(train),
    train_bytes=sum(len(d.text.encode()) for d in train),
    train_tokens=sum(map(len, tokens)),
    heldout=pipeline.tokenize(heldout, tokenizer),
    heldout_bytes=[len(d.text.encode()) for d in heldout],
    compression=compression.bits_per_byte(heldout),
    fingerprint=pipeline.fingerprint(train + heldout, tokenizer, config.data),
  )
