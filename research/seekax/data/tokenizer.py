"""Tokenizer: any Hugging Face tokenizer.json, or a byte-level BPE of our own.

Text never becomes a control token: what looks like one in a document or a
prompt is encoded as the ordinary characters that it is.
"""

from collections.abc import Iterable, Iterator, Sequence
import json
import os
import pathlib

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from seekax.data import sources

BOS = '<|bos|>'
EOS = '<|eos|>'
MIN_VOCAB_SIZE = 258  # The two control tokens and the 256 bytes.

# The first name that a tokenizer knows is taken. DeepSeek's names are spelt
# with U+2581 and, in the released files, with full-width bars (U+FF5C).
_BOS_NAMES = (BOS, '<|begin▁of▁sentence|>', '<｜begin▁of▁sentence｜>')
_BOS_NAMES += ('<s>', '<|begin_of_text|>', '[BOS]', '<|endoftext|>')
_EOS_NAMES = (EOS, '<|end▁of▁sentence|>', '<｜end▁of▁sentence｜>')
_EOS_NAMES += ('</s>', '<|end_of_text|>', '[EOS]', '<|endoftext|>')

# Words take one character before them (a space, a dot, an underscore), digits
# go in threes, punctuation takes the line ends after it, and indentation is
# one piece that starts after the line end: a prompt that ends in a newline is
# cut as the same text in the middle of a file.
_PIECES = (
  r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*'
  r'|\s*[\r\n]+|[ \t]{2,}|\s+'
)
# Part of the cache key: raise it with every change of `train`.
_RECIPE_VERSION = 1
# An encoding takes some hundred bytes per token until its ids are copied out.
_BLOCK_CHARACTERS = 1 << 20


class Tokenizer:
  """Text to ids and back.

  Attributes:
    vocab_size: one more than the largest id; an embedding has at least as many
      rows.
    bos_id: the token before every document.
    eos_id: the token after every document.
  """

  def __init__(self, source: str):
    """Builds a tokenizer from the text of a tokenizer.json.

    Raises:
      DataError: the text is no tokenizer, or has no known BOS or EOS token.
    """
    self._source = source
    self._decoder = _parse(source)
    _check_added_ids(source, self._decoder)
    protected = _protect_controls(source)
    self._encoder = _parse(protected) if protected else self._decoder
    self._encoder.encode_special_tokens = True
    self._encoder.no_truncation()
    self._encoder.no_padding()
    self.vocab_size = 1 + max(self._decoder.get_vocab().values(), default=-1)
    self.bos_id = self._find('BOS', _BOS_NAMES)
    self.eos_id = self._find('EOS', _EOS_NAMES)

  def _find(self, kind: str, names: Sequence[str]) -> int:
    ids = (self._decoder.token_to_id(name) for name in names)
    for token_id in ids:
      if token_id is not None:
        return token_id
    raise sources.DataError(
      f'the tokenizer has no {kind} token of a known name ({", ".join(names)})'
    )

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 ids [L], without BOS and EOS.

    Raises:
      DataError: the text is not valid Unicode (it has lone surrogates).
    """
    return self.encode_many([text])[0]

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Encodes texts on all cores; see `encode`."""
    try:
      return [
        np.array(encoding.ids, np.int32)
        for block in _blocks(texts)
        for encoding in self._encoder.encode_batch_fast(
          block, add_special_tokens=False
        )
      ]
    except TypeError as error:
      raise sources.DataError(
        f'cannot encode text that is not valid Unicode ({error})'
      ) from error

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of ids, without special tokens; bad UTF-8 is U+FFFD."""
    ids = [int(token_id) for token_id in ids]
    return self._decoder.decode(ids, skip_special_tokens=True)

  def stream(self, ids: Iterable[int]) -> Iterator[str]:
    """Decodes ids as they come; a piece waits until its UTF-8 is whole.

    The pieces together are what `decode` makes of all the ids.
    """
    stream = decoders.DecodeStream(skip_special_tokens=True)
    seen, length = [], 0
    for token_id in ids:
      seen.append(int(token_id))
      piece = stream.step(self._decoder, seen[-1])
      if piece:
        length += len(piece)
        yield piece
    rest = self.decode(seen)[length:]
    if rest:
      yield rest

  def to_json(self) -> str:
    """Returns the text of the tokenizer.json, unchanged if it was loaded."""
    return self._source

  def save(self, path: str | os.PathLike) -> None:
    """Writes a tokenizer.json that `load` and other people's tools read.

    Raises:
      OSError: the folder is missing or can't be written.
    """
    _write_atomically(pathlib.Path(path), self._source)


def train(texts: Sequence[str], vocab_size: int) -> Tokenizer:
  """Trains a byte-level BPE; BOS is 0, EOS is 1, decode inverts encode.

  Deterministic. On little text the vocabulary stays smaller than asked.

  Raises:
    DataError: `vocab_size` leaves no room for the 256 bytes.
  """
  if vocab_size < MIN_VOCAB_SIZE:
    raise sources.DataError(
      f'vocab_size={vocab_size} is below {MIN_VOCAB_SIZE}, the 256 bytes, BOS '
      'and EOS; raise model.vocab_size'
    )
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_PIECES), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[BOS, EOS],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return Tokenizer(tokenizer.to_str())


def load(path: str | os.PathLike) -> Tokenizer:
  """Reads a Hugging Face tokenizer.json.

  Raises:
    DataError: the file is missing, broken, or has no known BOS or EOS token.
  """
  try:
    # As bytes: reading as text would turn CRLF into LF, and `save` change it.
    return Tokenizer(pathlib.Path(path).read_bytes().decode('utf-8'))
  except OSError as error:
    raise sources.DataError(
      f'cannot read tokenizer {path} ({error.strerror}); give the path of a '
      'tokenizer.json'
    ) from error
  except UnicodeDecodeError as error:
    raise sources.DataError(
      f'tokenizer {path} is not UTF-8 at byte {error.start}; give a '
      'tokenizer.json'
    ) from error
  except sources.DataError as error:
    raise sources.DataError(f'{path}: {error}') from error


def for_corpus(
  documents: Sequence[sources.Document], vocab_size: int
) -> Tokenizer:
  """Trains on the documents, or takes the result of an earlier training.

  Results are kept in `$SEEKAX_CACHE`, `$XDG_CACHE_HOME/seekax` or
  `~/.cache/seekax`. A cache that can't be written or is corrupt costs time
  and nothing else.

  Raises:
    DataError: see `train`.
  """
  texts = [document.text for document in documents]
  try:
    folder = _cache_folder()
  except RuntimeError:  # There is no home folder.
    return train(texts, vocab_size)
  path = folder / f'{_corpus_key(documents, vocab_size)}.bpe'
  try:
    return _load_cached(path)
  except (OSError, ValueError):
    tokenizer = train(texts, vocab_size)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tokenizer.to_json()
    _write_atomically(path, f'{sources.sha256(content)}\n{content}')
  except OSError:
    pass
  return tokenizer


def _load_cached(path: pathlib.Path) -> Tokenizer:
  digest, _, content = path.read_text(encoding='utf-8').partition('\n')
  if digest != sources.sha256(content):
    raise sources.DataError(f'{path} is corrupt')
  return Tokenizer(content)


def _cache_folder() -> pathlib.Path:
  if folder := os.environ.get('SEEKAX_CACHE'):
    return pathlib.Path(folder, 'tokenizers')
  if folder := os.environ.get('XDG_CACHE_HOME'):
    return pathlib.Path(folder, 'seekax', 'tokenizers')
  return pathlib.Path.home() / '.cache' / 'seekax' / 'tokenizers'


def _corpus_key(documents: Sequence[sources.Document], vocab_size: int) -> str:
  names_and_texts = [(d.name, sources.sha256(d.text)) for d in documents]
  return sources.sha256(
    json.dumps([_RECIPE_VERSION, vocab_size, names_and_texts])
  )


def _write_atomically(path: pathlib.Path, content: str) -> None:
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with open(temporary, 'w', encoding='utf-8', newline='') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _parse(source: str) -> tokenizers.Tokenizer:
  try:
    return tokenizers.Tokenizer.from_str(source)
  except Exception as error:  # The library raises nothing more precise.
    raise sources.DataError(
      f'not a tokenizer.json of Hugging Face tokenizers ({error})'
    ) from error


def _check_added_ids(source: str, tokenizer: tokenizers.Tokenizer) -> None:
  """Refuses a file whose ids the library silently replaces by others."""
  for token in json.loads(source).get('added_tokens') or ():
    ours = tokenizer.token_to_id(token['content'])
    if ours != token['id']:
      raise sources.DataError(
        f'the added token {token["content"]!r} has id {token["id"]} but must '
        f'have {ours}, the next after the vocabulary; take the original file'
      )


def _protect_controls(source: str) -> str:
  """Marks as special every added token that has the looks of a control token.

  Released files have some that are not marked, such as <think>, because
  decoding has to show them. Other added tokens, such as runs of spaces, are
  plain text. Returns '' if there is nothing to mark.
  """
  definition = json.loads(source)
  unmarked = [
    token
    for token in definition.get('added_tokens') or ()
    if token['content'].startswith('<')
    and token['content'].endswith('>')
    and not token['special']
  ]
  for token in unmarked:
    token['special'] = True
  return json.dumps(definition) if unmarked else ''


def _blocks(texts: Sequence[str]) -> Iterator[list[str]]:
  """Yields consecutive texts, about `_BLOCK_CHARACTERS` at a time."""
  block, characters = [], 0
  for text in texts:
    block.append(text)
    characters += len(text)
    if characters >= _BLOCK_CHARACTERS:
      yield block
      block, characters = [], 0
  if block:
    yield block
