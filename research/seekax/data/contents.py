"""What a run's sources contain: texts, folders of tokens, and their split."""

from collections.abc import Sequence
import dataclasses
import logging

import numpy as np

from seekax.configuration.data import DataConfig
from seekax.data import sources, split
from seekax.data.documents import Chosen, Documents, frame, InMemory, Joined
from seekax.data.reading_rules import DataError, Document, Rules, rules_of
from seekax.data.shards import CorruptRecordError, TokenFolder
from seekax.data.tokenizer import Tokenizer

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Heldout:
  """A held-out document: its text, framed int32 tokens and number of bytes."""

  document: Document
  tokens: np.ndarray
  num_bytes: int


@dataclasses.dataclass(frozen=True)
class Contents:
  """One source of a run.

  Attributes:
    source: the source that was read.
    train_texts: texts to train on.
    heldout_texts: held-out texts.
    folders: folders of tokens.
    held: for each folder, bool [n]: which of its documents are held out.
  """

  source: sources.Source
  train_texts: list[Document]
  heldout_texts: list[Document]
  folders: list[TokenFolder]
  held: list[np.ndarray]

  def train_documents(self) -> int:
    """Number of documents to train on."""
    in_folders = sum(int((~held).sum()) for held in self.held)
    return len(self.train_texts) + in_folders

  def train_bytes(self) -> int:
    """Number of UTF-8 bytes in the text to train on."""
    return sum(len(d.text.encode()) for d in self.train_texts) + sum(
      int(folder.num_bytes[~held].sum())
      for folder, held in zip(self.folders, self.held, strict=True)
    )

  def training(self, tokenizer: Tokenizer) -> Documents:
    """The documents to train on, tokenized."""
    tokens = tokenize(self.train_texts, tokenizer)
    names = [document.name for document in self.train_texts]
    return Joined(
      [
        InMemory(tokens, names),
        *(
          Chosen(folder, np.flatnonzero(~held))
          for folder, held in zip(self.folders, self.held, strict=True)
        ),
      ]
    )

  def heldout(self, tokenizer: Tokenizer, skip_corrupt: bool) -> list[Heldout]:
    """The held-out documents.

    Args:
      tokenizer: the tokenizer of the run and of every folder.
      skip_corrupt: leave out records that can't be read, with a warning.

    Raises:
      CorruptRecordError: a record can't be read.
    """
    tokens = tokenize(self.heldout_texts, tokenizer)
    result = [
      Heldout(document, ids, len(document.text.encode()))
      for document, ids in zip(self.heldout_texts, tokens, strict=True)
    ]
    for folder, held in zip(self.folders, self.held, strict=True):
      for number in np.flatnonzero(held).tolist():
        try:
          ids = folder.read(number)
        except CorruptRecordError as error:
          if not skip_corrupt:
            raise
          _logger.warning('skipped, of the held-out documents: %s', error)
          continue
        document = Document(folder.name(number), tokenizer.decode(ids[1:-1]))
        result.append(Heldout(document, ids, int(folder.num_bytes[number])))
    return result

  def identity(self) -> list[object]:
    """JSON that, beside the texts, decides the order of the data."""
    folders = [folder.sha256 for folder in self.folders]
    return [self.source.weight, len(self.train_texts), folders]


def read(config: DataConfig, rules: Rules | None = None) -> list[Contents]:
  """Reads the sources and holds out a part; a single text is cut in two.

  Args:
    config: the `data` group.
    rules: how files are read; None takes the config's rules.

  Raises:
    DataError: a source can't be read or leaves nothing to train on, or nothing
      is held out.
  """
  parsed = sources.parse(config.source)
  rules = rules_of(config) if rules is None else rules
  texts = [sources.read_text(source, rules) for source in parsed]
  folders = [_open_folders(source, config.skip_corrupt) for source in parsed]
  if len(parsed) == 1 and len(texts[0]) == 1 and not folders[0]:
    train, heldout = split.split_lines(texts[0][0], config.heldout_fraction)
    return [Contents(parsed[0], [train], [heldout], [], [])]
  # The same files of the library stay held out under another Python version.
  by_name = config.source == sources.STDLIB
  keys_of = split.name_keys if by_name else split.content_keys
  keys = []
  for source_texts, source_folders in zip(texts, folders, strict=True):
    keys.append(keys_of(source_texts))
    keys += [folder.keys for folder in source_folders]
  held = split.choose_heldout(np.concatenate(keys), config.heldout_fraction)
  parts = iter(np.split(held, np.cumsum([len(k) for k in keys])[:-1]))
  return [
    _contents(
      source,
      source_texts,
      source_folders,
      held_texts=next(parts),
      held=[next(parts) for _ in source_folders],
    )
    for source, source_texts, source_folders in zip(
      parsed, texts, folders, strict=True
    )
  ]


def _open_folders(
  source: sources.Source, skip_corrupt: bool
) -> list[TokenFolder]:
  return [
    TokenFolder(path, prefix, skip_corrupt)
    for path, prefix in zip(source.paths, source.prefixes, strict=True)
    if sources.is_tokens(path)
  ]


def _contents(
  source: sources.Source,
  texts: Sequence[Document],
  folders: list[TokenFolder],
  held_texts: np.ndarray,
  held: list[np.ndarray],
) -> Contents:
  if held_texts.all() and all(part.all() for part in held):
    raise DataError(
      f'data.heldout_fraction holds out every document of {source}; lower it '
      'or give the source more documents'
    )
  sides = list(zip(texts, held_texts, strict=True))
  return Contents(
    source,
    [document for document, out in sides if not out],
    [document for document, out in sides if out],
    folders,
    held,
  )


def tokenize(
  documents: Sequence[Document], tokenizer: Tokenizer
) -> list[np.ndarray]:
  """Returns each document as int32 [bos, tokens..., eos]."""
  return [
    frame(tokens, tokenizer.bos_id, tokenizer.eos_id)
    for tokens in tokenizer.encode_documents(documents)
  ]
