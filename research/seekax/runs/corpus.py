"""The data of a run: training batches and held-out documents."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from seekax.configuration.config import Config
from seekax.configuration.errors import ConfigError
from seekax.data import (
  chat,
  compression,
  contents,
  pipeline,
  sources,
  tokenizer_files,
  tokenizer_training,
)
from seekax.data import tokenizer as tokenizer_lib
from seekax.data.augmentation import Augmentation
from seekax.data.contents import Contents
from seekax.data.reading_rules import Document, Rules, rules_of
from seekax.data.tokenizer import Tokenizer
from seekax.storage import hub


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Tokenized training and held-out text.

  Attributes:
    tokenizer: the tokenizer of all of it.
    batches: endless training batches, whose position can be saved.
    train_documents: number of training documents.
    train_bytes: their length in UTF-8.
    train_tokens: number of their tokens, BOS and EOS included.
    heldout: int32 [BOS, tokens ..., EOS], one array per held-out document.
    heldout_bytes: length of each in UTF-8.
    compression: bits per byte that gzip and xz need for them.
    fingerprint: hash of everything that decides the batches and held-out text.
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


def load(
  config: Config,
  tokenizer: Tokenizer | None = None,
  process: int = 0,
  num_processes: int = 1,
) -> Corpus:
  """Reads, splits and tokenizes the sources.

  Args:
    config: the run.
    tokenizer: the one that the run's weights know, if they know one.
    process: the number of this process, which reads its own shards alone.
    num_processes: number of processes of the run.

  Raises:
    DataError: a source or the tokenizer can't be used.
    ConfigError: the tokenizer is larger than the model's vocabulary.
  """
  data = config.data
  if tokenizer is None and data.tokenizer:
    tokenizer = tokenizer_files.load(data.tokenizer)
  parts = contents.read(data, _rules(config, tokenizer))
  train_texts = sum((part.train_texts for part in parts), [])
  if data.fim_rate and any(text.mark for text in train_texts):
    raise sources.DataError(
      'data.fim_rate rearranges plain text, but the source holds conversations '
      'with control tokens; set data.fim_rate=0 or leave them out'
    )
  tokenizer = _find_tokenizer(config, tokenizer, parts, train_texts)
  ingredients = [
    pipeline.Ingredient(part.source.weight, part.training(tokenizer))
    for part in parts
  ]
  heldout = sum((p.heldout(tokenizer, data.skip_corrupt) for p in parts), [])
  heldout.sort(key=lambda entry: sources.sha256(entry.document.name))
  heldout_texts = sum((part.heldout_texts for part in parts), [])
  heldout_texts.sort(key=lambda document: sources.sha256(document.name))
  mixture = []
  if len(parts) > 1 or parts[0].folders:
    mixture = [data.heldout_fraction, *(part.identity() for part in parts)]
  return Corpus(
    tokenizer=tokenizer,
    batches=pipeline.mixed_batches(
      ingredients, data, Augmentation(tokenizer, data), process, num_processes
    ),
    train_documents=sum(part.train_documents() for part in parts),
    train_bytes=sum(part.train_bytes() for part in parts),
    train_tokens=sum(int(i.documents.lengths.sum()) for i in ingredients),
    heldout=[entry.tokens for entry in heldout],
    heldout_bytes=[entry.num_bytes for entry in heldout],
    compression=compression.bits_per_byte([e.document for e in heldout]),
    fingerprint=pipeline.fingerprint(
      train_texts + heldout_texts, tokenizer, data, mixture
    ),
  )


def _rules(config: Config, tokenizer: Tokenizer | None) -> Rules:
  """How the sources are read: conversations by the tokenizer's template."""
  rules = rules_of(config.data)
  path = config.data.tokenizer or config.train.init_from
  if tokenizer is None or not path:
    return rules
  folder = hub.local(path)
  if not folder.exists():
    return rules
  return chat.rules_with_template(rules, tokenizer, str(folder))[0]


def _find_tokenizer(
  config: Config,
  tokenizer: Tokenizer | None,
  parts: Sequence[Contents],
  train_texts: Sequence[Document],
) -> Tokenizer:
  """The run's tokenizer, which is that of every folder of tokens."""
  folders = [folder for part in parts for folder in part.folders]
  if tokenizer is None and folders:
    tokenizer = folders[0].tokenizer
  elif tokenizer is None:
    controls = tokenizer_lib.FIM if config.data.fim_rate else ()
    tokenizer = tokenizer_training.for_corpus(
      train_texts, config.model.vocab_size, controls
    )
  for folder in folders:
    theirs = folder.tokenizer
    if (theirs.to_json(), theirs.bos, theirs.eos) != (
      tokenizer.to_json(),
      tokenizer.bos,
      tokenizer.eos,
    ):
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
