"""Tokenizer: any Hugging Face tokenizer.json, or a byte-level BPE of our own.

Text never becomes a control token: what looks like one in a document or a
prompt is encoded as ordinary characters. Only text that a chat template writes
is read with its control tokens (`encode_with_controls`).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
import functools
import json
import os
import pathlib
import re

import numpy as np
from tokenizers import processors

from seekax.data import long_text, sources, text_stream
from seekax.data.tokenizer_checks import (
  check_added_ids,
  check_ids,
  parse,
  unique_keys,
)
from seekax.files import JsonObject, write_atomically

BOS = '<|bos|>'
EOS = '<|eos|>'
# Fill-in-the-middle tokens: before the prefix, where the middle is missing, and
# before the middle.
FIM = ('<|fim_begin|>', '<|fim_hole|>', '<|fim_end|>')
MIN_VOCAB_SIZE = 258  # The two control tokens and the 256 bytes.

# The first name that a tokenizer knows is used. DeepSeek's names are spelt
# with U+2581 and, in the released files, with full-width bars (U+FF5C).
_BOS_NAMES = (BOS, '<|begin▁of▁sentence|>', '<｜begin▁of▁sentence｜>')
_BOS_NAMES += ('<s>', '<|begin_of_text|>', '[BOS]', '<|endoftext|>')
_EOS_NAMES = (EOS, '<|end▁of▁sentence|>', '<｜end▁of▁sentence｜>')
_EOS_NAMES += ('</s>', '<|end_of_text|>', '[EOS]', '<|endoftext|>')
_FIM_NAMES = (
  FIM,
  ('<｜fim▁begin｜>', '<｜fim▁hole｜>', '<｜fim▁end｜>'),
  ('<|fim_prefix|>', '<|fim_suffix|>', '<|fim_middle|>'),
  ('<fim_prefix>', '<fim_suffix>', '<fim_middle>'),
)
_SPACES = re.compile(r'\s*')
_WORD = re.compile(r'\w')
# An encoding takes some hundred bytes per token until its ids are copied out.
_BLOCK_CHARACTERS = 1 << 19


class Tokenizer:
  """Converts text to ids and back.

  Attributes:
    vocab_size: the largest id plus 1; an embedding needs at least as many rows.
    bos: name of the token before every document.
    bos_id: id of that token.
    eos: name of the token after every document.
    eos_id: id of that token.
    fim_ids: ids of the three fill-in-the-middle tokens, in the order of `FIM`;
      () if the tokenizer lacks them.
  """

  def __init__(self, source: str, bos: str = '', eos: str = ''):
    """Builds a tokenizer from the text of a tokenizer.json.

    Args:
      source: the text.
      bos: the name of the BOS token; '' takes the first known name.
      eos: the name of the EOS token; '' takes the first known name.

    Raises:
      DataError: the text is not a tokenizer, two of its tokens conflict, or it
        lacks the BOS or EOS token.
    """
    self._source = source
    self._decoder = parse(source)
    definition = json.loads(source, object_pairs_hook=unique_keys)
    added = definition.get('added_tokens') or ()
    vocabulary = self._decoder.get_vocab()
    check_added_ids(added, self._decoder)
    check_ids(vocabulary)
    self.vocab_size = 1 + max(vocabulary.values(), default=-1)
    found = self._find('BOS', (bos,) if bos else _BOS_NAMES)
    self.bos, self.bos_id = found
    found = self._find('EOS', (eos,) if eos else _EOS_NAMES)
    self.eos, self.eos_id = found
    fims = [tuple(map(self._decoder.token_to_id, f)) for f in _FIM_NAMES]
    self.fim_ids = next((ids for ids in fims if None not in ids), ())
    controls = [token for token in added if self._is_control(token)]
    self._encoder = self._decoder
    if not all(token['special'] for token in controls):
      for token in controls:
        token['special'] = True
      self._encoder = parse(json.dumps(definition))
    self._encoder.encode_special_tokens = True
    self._encoder.no_truncation()
    self._encoder.no_padding()
    # A control token of one character can't be broken by inserting another, so
    # it is always read as text.
    self._controls = {
      t['content']: t for t in controls if len(t['content']) > 1
    }
    self._control = _any_of(self._controls)
    cuts = [(c, n) for c in self._controls for n in range(1, len(c))]
    self._heads = tuple({name[:n] for name, n in cuts})
    self._tails = tuple({name[n:] for name, n in cuts})

  def _find(self, kind: str, names: Sequence[str]) -> tuple[str, int]:
    for name in names:
      token_id = self._decoder.token_to_id(name)
      if token_id is not None:
        return name, token_id
    raise sources.DataError(
      f'the tokenizer has no {kind} token of a known name ({", ".join(names)})'
      if len(names) > 1
      else f'the tokenizer has no token {names[0]!r}, the given name of {kind}'
    )

  def _is_control(self, token: JsonObject) -> bool:
    """Whether an added token is one that text must not turn into.

    Released files don't mark all of these as special, <think> for example,
    because decoding has to show them. Other added tokens, such as runs of
    spaces, are plain text.
    """
    name = token['content']
    looks_like_one = name.startswith('<') and name.endswith('>')
    return token['special'] or looks_like_one or name in (self.bos, self.eos)

  def check_fits(self, vocab_size: int) -> None:
    """Checks that an embedding of `vocab_size` rows has one for every id.

    More rows than ids are normal: embeddings are padded to round sizes.

    Raises:
      DataError: it has fewer rows than the tokenizer has ids.
    """
    if self.vocab_size > vocab_size:
      raise sources.DataError(
        f'the tokenizer has ids up to {self.vocab_size - 1} but the embedding '
        f'has only {vocab_size} rows; take the tokenizer of the same model'
      )

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 ids [L], without BOS and EOS.

    Raises:
      DataError: the text is not valid Unicode (it has lone surrogates).
    """
    return self.encode_many([text])[0]

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Encodes texts on all cores, long ones in pieces; see `encode`."""
    parts = [[] for _ in texts]
    for block in _blocks(self._pieces(texts)):
      encoded = self._encode_batch([piece for _, piece in block])
      for (number, _), ids in zip(block, encoded, strict=True):
        parts[number].append(ids)
    return [p[0] if len(p) == 1 else np.concatenate(p) for p in parts]

  def _pieces(self, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    for number, text in enumerate(texts):
      for piece in long_text.cut(text, self._agrees):
        yield number, piece

  def _agrees(self, left: str, gap: str, right: str) -> bool:
    """Whether cutting a text here leaves its tokens unchanged."""
    whole, *parts = self._encode_batch([left + gap + right, left, right])
    return np.array_equal(whole, np.concatenate(parts))

  def _encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    try:
      return [
        np.array(encoding.ids, np.int32)
        for encoding in self._encoder.encode_batch_fast(
          texts, add_special_tokens=False
        )
      ]
    except TypeError as error:
      raise sources.DataError(
        f'cannot encode text that is not valid Unicode ({error})'
      ) from error
    except BaseException as error:
      # The library panics at what it can't do; a panic is no Exception.
      known = isinstance(error, Exception)
      if not known and type(error).__name__ != 'PanicException':
        raise
      reason = ' '.join(str(error).split())[:200]
      raise sources.DataError(
        f'the tokenizer fails on a text ({reason}); take another tokenizer or '
        'other text'
      ) from error

  def encode_with_controls(self, text: str, mark: str = '') -> np.ndarray:
    """Encodes text whose control-token strings become control tokens.

    For a byte-level tokenizer without normalization the ids equal those of
    Hugging Face tokenizers. A pre-tokenizer that adds a space only before the
    first word would add one here after every control token.

    Args:
      text: text that a chat template wrote.
      mark: what `break_controls` put into the untrusted parts of the text; it
        is removed before they are encoded.

    Returns:
      int32 ids [L], without BOS and EOS unless the text spells them.

    Raises:
      DataError: see `encode`.
    """
    plain, ids = self._split_at_controls(text)
    encoded = self.encode_many([piece.replace(mark, '') for piece in plain])
    parts = [encoded[0]]
    for token_id, piece in zip(ids, encoded[1:], strict=True):
      parts += [np.array([token_id], np.int32), piece]
    return np.concatenate(parts)

  def encode_documents(
    self, documents: Sequence[sources.Document]
  ) -> list[np.ndarray]:
    """Encodes documents: texts, and conversations with their control tokens.

    Returns:
      int32 ids [L] of each document, without a BOS and EOS around it, even
      where a chat template writes them.

    Raises:
      DataError: see `encode`.
    """
    texts = (document.text for document in documents if not document.mark)
    encoded = iter(self.encode_many(list(texts)))
    return [
      self._encode_rendered(document) if document.mark else next(encoded)
      for document in documents
    ]

  def _encode_rendered(self, document: sources.Document) -> np.ndarray:
    ids = self.encode_with_controls(document.marked, document.mark)
    start = int(ids[:1].tolist() == [self.bos_id])
    end = len(ids) - int(ids[start:][-1:].tolist() == [self.eos_id])
    return ids[start:end]

  def break_controls(
    self, text: str, mark: str, keep: Collection[str] = ()
  ) -> str:
    """Puts `mark` into a text wherever it could become a control token.

    The mark goes after the first character of every control-token string, and
    at the ends of the text where its neighbours could complete one.

    Args:
      text: untrusted text.
      mark: a character that the text doesn't contain.
      keep: names of control tokens that stay whole.
    """
    cuts, start = set(), 0
    while match := self._control.search(text, start):
      start = match.start() + 1  # Control tokens may overlap.
      if match[0] not in keep:
        cuts.add(start)
    # A template may strip the text.
    body = text.strip()
    start = len(text) - len(text.lstrip())
    if body.endswith(self._heads):
      cuts.add(start + len(body))
    if body.startswith(self._tails) or any(
      body in name and body != name for name in self._controls if body
    ):
      cuts.add(start)
    edges = [0, *sorted(cuts), len(text)]
    return mark.join(text[a:b] for a, b in zip(edges, edges[1:], strict=False))

  def _split_at_controls(self, text: str) -> tuple[list[str], list[int]]:
    """Returns n + 1 plain pieces and the n control ids between them.

    An added token's flags are applied as in Hugging Face's AddedVocabulary: it
    takes the white space beside it, or must not touch a word.
    """
    plain, ids, done = [], [], 0
    for match in self._control.finditer(text):
      token, (start, end) = self._controls[match[0]], match.span()
      if token['single_word'] and (
        _WORD.match(text, max(start - 1, 0), start) or _WORD.match(text, end)
      ):
        continue
      piece = text[done:start]
      plain.append(piece.rstrip() if token['lstrip'] else piece)
      ids.append(token['id'])
      done = end
      if token['rstrip'] and (blank := _SPACES.match(text, end)):
        done = blank.end()
    return [*plain, text[done:]], ids

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of ids, without special tokens; bad UTF-8 is U+FFFD."""
    ids = [int(token_id) for token_id in ids]
    return self._decoder.decode(ids, skip_special_tokens=True)

  def stream(self, ids: Iterable[int]) -> Iterator[str]:
    """Decodes ids as they come; text waits until no later id can change it.

    The pieces together are `decode` of all the ids.
    """
    return text_stream.stream(
      map(int, ids), self.decode, self._byte_ids, self._skipped_ids
    )

  @functools.cached_property
  def _byte_ids(self) -> frozenset[int]:
    """Ids of byte fallback; each stands for one byte."""
    names = (f'<0x{byte:02X}>' for byte in range(256))
    ids = map(self._decoder.token_to_id, names)
    return frozenset(x for x in ids if x is not None)

  @functools.cached_property
  def _skipped_ids(self) -> frozenset[int]:
    """Ids for which `decode` returns no text."""
    added = self._decoder.get_added_tokens_decoder()
    return frozenset(x for x, token in added.items() if token.special)

  def to_json(self) -> str:
    """Returns the text of the tokenizer.json, unchanged if it was loaded."""
    return self._source

  def to_json_with_bos(self) -> str:
    """The same text with a post-processor that puts BOS before every text.

    It is unchanged if it has a post-processor already. seekax doesn't run the
    post-processor; other tools do.
    """
    made = parse(self._source)
    if made.post_processor is not None:
      return self._source
    made.post_processor = processors.TemplateProcessing(
      single=f'{self.bos} $A',
      pair=f'{self.bos} $A {self.bos} $B:1',
      special_tokens=[(self.bos, self.bos_id)],
    )
    return made.to_str()

  def save(self, path: str | os.PathLike) -> None:
    """Writes a tokenizer.json that `load` and other tools read.

    Raises:
      OSError: the folder is missing or can't be written.
    """
    write_atomically(pathlib.Path(path), self._source)


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
  """A pattern of the names, longest first; it matches nothing without any."""
  names = sorted(names, key=len, reverse=True)
  return re.compile('|'.join(map(re.escape, names)) or '(?!)')


def _blocks(
  pieces: Iterable[tuple[int, str]],
) -> Iterator[list[tuple[int, str]]]:
  """Yields consecutive pieces, about `_BLOCK_CHARACTERS` at a time."""
  block, characters = [], 0
  for piece in pieces:
    block.append(piece)
    characters += len(piece[1])
    if characters >= _BLOCK_CHARACTERS:
      yield block
      block, characters = [], 0
  if block:
    yield block
