"""Folders of tokens: array_record shards, an index beside each, a manifest.

A shard has one record per document: its ids, with bos and eos, as little-endian
integers of the manifest's dtype. The index has what the pipeline needs to know
about a document before reading it. The manifest is written last and has the
size and the SHA-256 of every file.
"""

from collections import OrderedDict
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import threading
from typing import cast, NotRequired, TypedDict

from array_record.python import array_record_module
import numpy as np

from seekax.data import split, tokenizer_files
from seekax.data.documents import frame
from seekax.data.reading_rules import DataError, Document
from seekax.data.sources import TOKENS_MANIFEST
from seekax.data.tokenizer import Tokenizer
from seekax.files import JsonObject, write_atomically

FORMAT = 'seekax tokens 1'
TOKENIZER = 'tokenizer.json'
# Each record is read alone, so that a corrupt one spoils no other.
_WRITER_OPTIONS = 'group_size:1,uncompressed'
_READER_OPTIONS = 'readahead_buffer_size:0'
_READER_BUFFER_BYTES = 32 << 10
_MAX_OPEN_SHARDS = 256
_DTYPES = ('<u2', '<i4')
_INDEX = np.dtype([('tokens', '<u4'), ('bytes', '<u4'), ('key', '<u8')])


class CorruptRecordError(DataError):
  """A record can't be read; the message names shard, record and position."""


@dataclasses.dataclass(frozen=True)
class Shard:
  """A shard's entry in the manifest.

  Attributes:
    name: name of its files, without their endings.
    size: bytes of the array_record file.
    sha256: SHA-256 of that file.
    index_sha256: SHA-256 of the index.
    documents: number of documents.
    tokens: number of their tokens, with bos and eos.
    bytes: number of UTF-8 bytes of their text.
  """

  name: str
  size: int
  sha256: str
  index_sha256: str
  documents: int
  tokens: int
  bytes: int

  def paths(self, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the paths of the array_record file and the index."""
    return folder / f'{self.name}.array_record', folder / f'{self.name}.npy'


def dtype_for(vocab_size: int) -> str:
  """The smaller of the two dtypes if it holds every id, else the larger."""
  return _DTYPES[vocab_size > 1 << 16]


def write_shard(
  folder: pathlib.Path,
  name: str,
  documents: Sequence[Document],
  tokenizer: Tokenizer,
) -> Shard:
  """Tokenizes documents into a shard; its files appear complete or not at all.

  Raises:
    OSError: the folder can't be written.
  """
  texts = [document.text for document in documents]
  index = np.zeros(len(texts), _INDEX)
  data_path, index_path = (
    folder / f'{name}.{ending}' for ending in ('array_record', 'npy')
  )
  temporary = folder / f'.{name}.tmp'
  writer = array_record_module.ArrayRecordWriter(
    str(temporary), _WRITER_OPTIONS
  )
  dtype = dtype_for(tokenizer.vocab_size)
  for number, ids in enumerate(tokenizer.encode_documents(documents)):
    tokens = frame(ids, tokenizer.bos_id, tokenizer.eos_id)
    writer.write(tokens.astype(dtype).tobytes())
    text = texts[number]
    index[number] = len(tokens), len(text.encode()), split.key(text)
  writer.close()
  _publish(temporary, data_path)
  with open(temporary, 'wb') as file:
    np.save(file, index, allow_pickle=False)
  _publish(temporary, index_path)
  return Shard(
    name=name,
    size=data_path.stat().st_size,
    sha256=file_sha256(data_path),
    index_sha256=file_sha256(index_path),
    documents=len(index),
    tokens=int(index['tokens'].sum(dtype=np.int64)),
    bytes=int(index['bytes'].sum(dtype=np.int64)),
  )


def _publish(temporary: pathlib.Path, path: pathlib.Path) -> None:
  with open(temporary, 'rb') as file:
    os.fsync(file.fileno())
  os.replace(temporary, path)


def file_sha256(path: pathlib.Path) -> str:
  """SHA-256 of a file, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


class Plan(TypedDict):
  """What decides a folder of tokens, as JSON; it can't change once begun.

  Keys:
    source: names of the files and folders.
    source_sha256: of all their texts.
    tokenizer_sha256: of the tokenizer's JSON text.
    bos: name of the token before each document.
    eos: name of the token after each document.
    shard_documents: maximum number of documents in a shard.
    text_field: field of a row that has the text, if it isn't `text`.
    chat_template_sha256: of the template that renders conversations, if any.
  """

  source: list[str]
  source_sha256: str
  tokenizer_sha256: str
  bos: str
  eos: str
  shard_documents: int
  text_field: NotRequired[str]
  chat_template_sha256: NotRequired[str]


class Manifest(Plan):
  """The plan, and what was written.

  Keys:
    format: of the folder.
    vocab_size: number of ids.
    dtype: of the stored ids.
    documents: their number, as that of `tokens` and `bytes`.
    shards: a `Shard` each.
  """

  format: str
  vocab_size: int
  dtype: str
  documents: int
  tokens: int
  bytes: int
  shards: list[JsonObject]


def write_manifest(
  folder: pathlib.Path,
  plan: Plan,
  tokenizer: Tokenizer,
  shards: Sequence[Shard],
) -> None:
  """Writes the manifest, which makes a folder of shards complete."""
  manifest: Manifest = {
    'format': FORMAT,
    **plan,
    'vocab_size': tokenizer.vocab_size,
    'dtype': dtype_for(tokenizer.vocab_size),
    'documents': sum(shard.documents for shard in shards),
    'tokens': sum(shard.tokens for shard in shards),
    'bytes': sum(shard.bytes for shard in shards),
    'shards': [dataclasses.asdict(shard) for shard in shards],
  }
  write_atomically(
    folder / TOKENS_MANIFEST, json.dumps(manifest, indent=1) + '\n'
  )


def read_manifest(folder: pathlib.Path) -> Manifest:
  """Reads a manifest.

  Raises:
    DataError: it is unreadable, or seekax tokenize didn't write it.
  """
  path = folder / TOKENS_MANIFEST
  manifest = tokenizer_files.read_json(path, max_bytes=1 << 30)
  if manifest.get('format') != FORMAT:
    raise DataError(
      f'{path} has the format {manifest.get("format")!r}, this seekax reads '
      f'{FORMAT!r}; write the folder anew with seekax tokenize'
    )
  for key in ('bos', 'eos', 'tokenizer_sha256', 'dtype', 'shards'):
    if not manifest.get(key):
      raise DataError(f'{path} lacks {key}; tokenize again')
  if manifest['dtype'] not in _DTYPES:
    raise DataError(f'{path}: the dtype is none of {", ".join(_DTYPES)}')
  return cast(Manifest, manifest)


def _read_shards(manifest: Manifest, path: pathlib.Path) -> list[Shard]:
  """Returns the manifest's shards; refuses names that leave the folder."""
  try:
    shards = [Shard(**entry) for entry in manifest['shards']]
  except TypeError as error:
    raise DataError(f'{path} lists no shards as known ({error})') from error
  for shard in shards:
    if not re.fullmatch(r'[A-Za-z0-9_-]+', shard.name):
      raise DataError(f'{path}: {shard.name!r} is no name of a shard')
  return shards


class TokenFolder:
  """The documents of a folder that seekax tokenize wrote.

  Attributes:
    tokenizer: the tokenizer that it was written with.
    lengths: int64 [n], number of tokens of each document.
    num_bytes: int64 [n], number of bytes of each document's text.
    keys: uint64 [n], see `split.content_keys`.
    sha256: SHA-256 of the manifest, which covers every other file.
    path: the folder.
  """

  def __init__(self, path: str, label: str, skip_corrupt: bool = False):
    """Opens a folder and compares every file with the manifest.

    Args:
      path: the folder.
      label: prefix of its documents' names.
      skip_corrupt: accept a shard some of whose records can't be read.

    Raises:
      DataError: a file is missing or differs; the message names it.
      CorruptRecordError: a record can't be read.
    """
    self.path, self._label = pathlib.Path(path), label
    manifest = read_manifest(self.path)
    self.sha256 = file_sha256(self.path / TOKENS_MANIFEST)
    self.tokenizer = self._read_tokenizer(manifest)
    self._dtype = np.dtype(manifest['dtype'])
    self._shards = _read_shards(manifest, self.path / TOKENS_MANIFEST)
    index = np.concatenate([self._read_index(shard) for shard in self._shards])
    self.lengths = index['tokens'].astype(np.int64)
    self.num_bytes = index['bytes'].astype(np.int64)
    self.keys = index['key']
    self._ends = np.cumsum([shard.documents for shard in self._shards])
    self._readers = OrderedDict()
    self._lock = threading.Lock()
    for number, shard in enumerate(self._shards):
      self._verify(number, shard, skip_corrupt)

  def _read_tokenizer(self, manifest: Manifest) -> Tokenizer:
    tokenizer = tokenizer_files.load(
      self.path / TOKENIZER, manifest['bos'], manifest['eos']
    )
    if sha256_of(tokenizer) != manifest['tokenizer_sha256']:
      raise DataError(
        f'{self.path / TOKENIZER} is not the tokenizer that the shards were '
        'written with; restore it'
      )
    return tokenizer

  def _read_index(self, shard: Shard) -> np.ndarray:
    _, path = shard.paths(self.path)
    try:
      if file_sha256(path) != shard.index_sha256:
        raise _changed(path)
      return np.load(path, allow_pickle=False)
    except OSError as error:
      raise DataError(f'cannot read {path} ({error.strerror})') from error

  def _verify(self, number: int, shard: Shard, skip_corrupt: bool) -> None:
    path, _ = shard.paths(self.path)
    try:
      if path.stat().st_size == shard.size and (
        file_sha256(path) == shard.sha256
      ):
        return
      if path.stat().st_size != shard.size:
        raise DataError(
          f'{path} has {path.stat().st_size} bytes, its manifest says '
          f'{shard.size}; restore it or tokenize again'
        )
    except OSError as error:
      raise DataError(f'cannot read {path} ({error.strerror})') from error
    corrupt = self._first_corrupt(number)
    if corrupt is None:
      raise _changed(path)
    if not skip_corrupt:
      raise corrupt

  def _first_corrupt(self, shard: int) -> CorruptRecordError | None:
    end = int(self._ends[shard])
    for number in range(end - self._shards[shard].documents, end):
      try:
        self.read(number)
      except CorruptRecordError as error:
        return error
    return None

  def _find(self, number: int) -> tuple[int, int]:
    shard = int(np.searchsorted(self._ends, number, 'right'))
    start = int(self._ends[shard]) - self._shards[shard].documents
    return shard, number - start

  def name(self, number: int) -> str:
    """Names a document by its shard and record; see `documents.Documents`."""
    shard, record = self._find(number)
    return f'{self._label}{self._shards[shard].name}:{record}'

  def read(self, number: int) -> np.ndarray:
    """See `documents.Documents`.

    Raises:
      CorruptRecordError: the record can't be read, or isn't the one that was
        written.
    """
    shard, record = self._find(number)
    path, _ = self._shards[shard].paths(self.path)
    try:
      # A reader has one position, which two threads must not move at once.
      with self._lock:
        (content,) = self._reader(shard).read([record])
    except (RuntimeError, ValueError, IndexError) as error:
      raise self._corrupt(path, record, str(error)) from error
    if len(content) != self.lengths[number] * self._dtype.itemsize:
      raise self._corrupt(path, record, 'its length differs from the index')
    tokens = np.frombuffer(content, self._dtype).astype(np.int32)
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < (
      self.tokenizer.vocab_size
    ):
      raise self._corrupt(
        path, record, f'an id is not below {self.tokenizer.vocab_size}'
      )
    return tokens

  def _corrupt(
    self, path: pathlib.Path, record: int, reason: str
  ) -> CorruptRecordError:
    return CorruptRecordError(
      f'{path}: record {record} is corrupt ({" ".join(reason.split())}); '
      'restore the file, or set data.skip_corrupt=True to train without'
    )

  def _reader(self, shard: int) -> array_record_module.ArrayRecordReader:
    """Returns an open reader; may close the least recently used one."""
    if shard not in self._readers:
      path, _ = self._shards[shard].paths(self.path)
      self._readers[shard] = array_record_module.ArrayRecordReader(
        str(path),
        options=_READER_OPTIONS,
        file_reader_buffer_size=_READER_BUFFER_BYTES,
      )
      if len(self._readers) > _MAX_OPEN_SHARDS:
        self._readers.popitem(last=False)[1].close()
    self._readers.move_to_end(shard)
    return self._readers[shard]


def sha256_of(tokenizer: Tokenizer) -> str:
  """SHA-256 of the tokenizer's JSON text."""
  return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def _changed(path: pathlib.Path) -> DataError:
  return DataError(
    f'{path} does not match its SHA-256 in the manifest: it was changed after '
    'it was written; restore it or tokenize again'
  )
