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
from typing import Any

import numpy as np
import tokenizers
from tokenizers import (
  decoders,
  models,
  pre_tokenizers,
  processors,
  trainers,
)

from seekax.data import foreign_tokenizer, long_text, sources, text_stream
from seekax.files import write_atomically

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

# Words take one character before them (a space, a dot, an underscore), digits
# go in threes, punctuation takes the line ends after it, and indentation is
# one piece that starts after the line end: so a prompt that ends in a newline
# is split like the same text in the middle of a file.
_PIECES = (
  r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*'
  r'|\s*[\r\n]+|[ \t]{2,}|\s+'
)
_SPACES = re.compile(r'\s*')
_WORD = re.compile(r'\w')
_ADDED_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
_MAX_CONFIG_BYTES = 16 << 20
_MAX_TOKENIZER_BYTES = 256 << 20
# Part of the cache key: raise it with every change to `train`.
_RECIPE_VERSION = 1
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
    self._decoder = _parse(source)
    definition = json.loads(source, object_pairs_hook=_unique_keys)
    added = definition.get('added_tokens') or ()
    vocabulary = self._decoder.get_vocab()
    _check_added_ids(added, self._decoder)
    _check_ids(vocabulary)
    self.vocab_size = 1 + max(vocabulary.values(), default=-1)
    self.bos = self._find('BOS', (bos,) if bos else _BOS_NAMES)
    self.bos_id = self._decoder.token_to_id(self.bos)
    self.eos = self._find('EOS', (eos,) if eos else _EOS_NAMES)
    self.eos_id = self._decoder.token_to_id(self.eos)
    fims = [tuple(map(self._decoder.token_to_id, f)) for f in _FIM_NAMES]
    self.fim_ids = next((ids for ids in fims if None not in ids), ())
    controls = [token for token in added if self._is_control(token)]
    self._encoder = self._decoder
    if not all(token['special'] for token in controls):
      for token in controls:
        token['special'] = True
      self._encoder = _parse(json.dumps(definition))
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

  def _find(self, kind: str, names: Sequence[str]) -> str:
    for name in names:
      if self._decoder.token_to_id(name) is not None:
        return name
    raise sources.DataError(
      f'the tokenizer has no {kind} token of a known name ({", ".join(names)})'
      if len(names) > 1
      else f'the tokenizer has no token {names[0]!r}, the given name of {kind}'
    )

  def _is_control(self, token: dict[str, Any]) -> bool:
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
      done = _SPACES.match(text, end).end() if token['rstrip'] else end
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
    made = _parse(self._source)
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


def train(
  texts: Sequence[str], vocab_size: int, more_controls: Sequence[str] = ()
) -> Tokenizer:
  """Trains a byte-level BPE; BOS is 0, EOS is 1, decode inverts encode.

  The result is deterministic. From little text the vocabulary stays smaller
  than asked for.

  Args:
    texts: texts to learn from.
    vocab_size: maximum number of tokens.
    more_controls: control tokens that get ids from 2 on, such as `FIM`.

  Raises:
    DataError: `vocab_size` leaves no room for the 256 bytes.
  """
  least = MIN_VOCAB_SIZE + len(more_controls)
  if vocab_size < least:
    raise sources.DataError(
      f'vocab_size={vocab_size} is below {least}, the 256 bytes, '
      f'{"BOS and EOS" if not more_controls else "BOS, EOS and other controls"}'
      '; raise model.vocab_size'
    )
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = _words()
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[BOS, EOS, *more_controls],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  # A separate pre-tokenizer: the tokenizer's own is locked while it trains.
  same_words = functools.partial(_same_words, _words())
  pieces = (
    piece for text in texts for piece in long_text.cut(text, same_words)
  )
  tokenizer.train_from_iterator(pieces, trainer)
  return Tokenizer(tokenizer.to_str())


def _words() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_PIECES), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def _same_words(
  words: pre_tokenizers.PreTokenizer, left: str, gap: str, right: str
) -> bool:
  """Whether a cut leaves the words that a tokenizer learns from unchanged."""
  whole, *parts = (
    [word for word, _ in words.pre_tokenize_str(text)]
    for text in (left + gap + right, left, right)
  )
  return whole == sum(parts, [])


def load(
  path: str | os.PathLike,
  bos: str = '',
  eos: str = '',
  more_tokens: Sequence[dict[str, Any]] = (),
) -> Tokenizer:
  """Reads a Hugging Face tokenizer.json.

  Args:
    path: path of the file.
    bos: see `Tokenizer`.
    eos: see `Tokenizer`.
    more_tokens: added tokens that stand in another file.

  Raises:
    DataError: the file is missing, broken, or lacks the BOS or EOS token.
  """
  try:
    # Read as bytes: text mode would turn CRLF into LF, and `save` change it.
    source = _read_bytes(pathlib.Path(path), _MAX_TOKENIZER_BYTES)
    text = source.decode('utf-8')
    foreign_tokenizer.check(text, _verdicts())
    return Tokenizer(_with_tokens(text, more_tokens), bos, eos)
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


def load_folder(folder: pathlib.Path) -> Tokenizer:
  """Reads the tokenizer in a released model's folder.

  It reads `tokenizer.json` and, if present, the names of BOS and EOS and the
  added tokens in `tokenizer_config.json`. Nothing else in that file counts; the
  code that its `auto_map` names is never run.

  Raises:
    DataError: see `load`; or `tokenizer_config.json` is broken.
  """
  path = folder / 'tokenizer.json'
  if not os.path.exists(path) and os.path.exists(folder / 'tiktoken.model'):
    raise sources.DataError(
      f'{folder} has a tiktoken.model but no tokenizer.json; convert it first'
    )
  config_path = folder / 'tokenizer_config.json'
  config = read_json(config_path)
  bos, eos = (
    _token_name(config_path, key, config.get(key))
    for key in ('bos_token', 'eos_token')
  )
  return load(path, bos, eos, _config_tokens(config_path, config))


def _config_tokens(
  path: pathlib.Path, config: dict[str, Any]
) -> list[dict[str, Any]]:
  """The entries of `added_tokens_decoder`, as tokenizer.json spells them.

  Raises:
    DataError: they don't map ids to objects with a name.
  """
  entries, found = config.get('added_tokens_decoder') or {}, []
  if not isinstance(entries, dict):
    raise sources.DataError(f'{path}: added_tokens_decoder is no JSON object')
  for key, entry in entries.items():
    name = entry.get('content') if isinstance(entry, dict) else None
    if not (key.isdecimal() and len(key) < 11 and isinstance(name, str)):
      raise sources.DataError(
        f'{path}: added_tokens_decoder maps {key[:40]!r} to no token with a '
        'content'
      )
    flags = {flag: entry.get(flag) is True for flag in _ADDED_FLAGS}
    found.append({'id': int(key), 'content': name, **flags})
  return sorted(found, key=lambda token: token['id'])


def _with_tokens(source: str, tokens: Sequence[dict[str, Any]]) -> str:
  """Adds the tokens that a tokenizer.json lacks; unchanged if it lacks none.

  Transformers adds those that stand only in tokenizer_config.json, and a model
  that was trained with them knows each as one id.

  Raises:
    DataError: the two files give a token different ids.
  """
  if not tokens:
    return source
  known = _parse(source)
  missing = []
  for token in tokens:
    here = known.token_to_id(token['content'])
    if here is None:
      missing.append(token)
    elif here != token['id']:
      raise sources.DataError(
        f'tokenizer_config.json gives {token["content"][:80]!r} the id '
        f'{token["id"]}, tokenizer.json has it as {here}; take the original '
        'files'
      )
  if not missing:
    return source
  definition = json.loads(source, object_pairs_hook=_unique_keys)
  definition['added_tokens'] = [
    *(definition.get('added_tokens') or ()),
    *missing,
  ]
  return json.dumps(definition, ensure_ascii=False)


def _token_name(path: pathlib.Path, key: str, value: Any) -> str:
  name = value.get('content') if isinstance(value, dict) else value
  if name is not None and not isinstance(name, str):
    raise sources.DataError(
      f'{path}: {key} is neither a string nor an object with a content'
    )
  return name or ''


def read_json(
  path: pathlib.Path, max_bytes: int = _MAX_CONFIG_BYTES
) -> dict[str, Any]:
  """Reads a small JSON object; {} if there is no such file.

  Raises:
    DataError: the file is unreadable, too large or not a JSON object.
  """
  content = read_small(path, max_bytes)
  if content is None:
    return {}
  try:
    result = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise sources.DataError(f'{path} is not JSON ({error})') from error
  if not isinstance(result, dict):
    raise sources.DataError(f'{path} is not a JSON object')
  return result


def read_small(path: pathlib.Path, max_bytes: int) -> str | None:
  """Reads a UTF-8 file; None if it doesn't exist.

  Raises:
    DataError: it isn't a regular file, is unreadable, too large or not UTF-8.
  """
  if not os.path.lexists(path):
    return None
  try:
    return _read_bytes(path, max_bytes).decode('utf-8')
  except OSError as error:
    raise sources.DataError(f'cannot read {path} ({error.strerror})') from error
  except UnicodeDecodeError as error:
    raise sources.DataError(
      f'{path} is not UTF-8 at byte {error.start}'
    ) from error


def _read_bytes(path: pathlib.Path, max_bytes: int) -> bytes:
  if path.exists() and not (path.is_file() or path.is_dir()):
    raise sources.DataError(f'{path} is not a file')  # A pipe would block.
  with path.open('rb') as file:
    content = file.read(max_bytes + 1)
  if len(content) > max_bytes:
    raise sources.DataError(f'{path} is larger than {max_bytes} bytes')
  return content


def for_corpus(
  documents: Sequence[sources.Document],
  vocab_size: int,
  more_controls: Sequence[str] = (),
) -> Tokenizer:
  """Trains on the documents, or returns the result of an earlier training.

  Results are kept in `$SEEKAX_CACHE`, `$XDG_CACHE_HOME/seekax` or
  `~/.cache/seekax`. If this cache can't be written or is corrupt, the tokenizer
  is trained again.

  Raises:
    DataError: see `train`.
  """
  texts = [document.text for document in documents]
  try:
    folder = _cache_folder()
  except RuntimeError:  # There is no home folder.
    return train(texts, vocab_size, more_controls)
  path = folder / f'{_corpus_key(documents, vocab_size, more_controls)}.bpe'
  try:
    return _load_cached(path)
  except (OSError, ValueError):
    tokenizer = train(texts, vocab_size, more_controls)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tokenizer.to_json()
    write_atomically(path, f'{sources.sha256(content)}\n{content}')
  except OSError:
    pass
  return tokenizer


def _load_cached(path: pathlib.Path) -> Tokenizer:
  digest, _, content = path.read_text(encoding='utf-8').partition('\n')
  if digest != sources.sha256(content):
    raise sources.DataError(f'{path} is corrupt')
  return Tokenizer(content)


def _verdicts() -> pathlib.Path | None:
  """Folder of marks for tokenizers found sound; None without a home folder."""
  try:
    return _cache_folder() / 'tried'
  except RuntimeError:
    return None


def _cache_folder() -> pathlib.Path:
  if folder := os.environ.get('SEEKAX_CACHE'):
    return pathlib.Path(folder, 'tokenizers')
  if folder := os.environ.get('XDG_CACHE_HOME'):
    return pathlib.Path(folder, 'seekax', 'tokenizers')
  return pathlib.Path.home() / '.cache' / 'seekax' / 'tokenizers'


def _corpus_key(
  documents: Sequence[sources.Document],
  vocab_size: int,
  more_controls: Sequence[str],
) -> str:
  names_and_texts = [(d.name, sources.sha256(d.text)) for d in documents]
  return sources.sha256(
    json.dumps([_RECIPE_VERSION, vocab_size, names_and_texts, *more_controls])
  )


def _parse(source: str) -> tokenizers.Tokenizer:
  try:
    return tokenizers.Tokenizer.from_str(source)
  except Exception as error:  # The library raises nothing more precise.
    raise sources.DataError(
      f'not a tokenizer.json of Hugging Face tokenizers ({error})'
    ) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  result = dict(pairs)
  if len(result) < len(pairs):
    seen = set()
    twice = next(k for k, _ in pairs if k in seen or seen.add(k))
    raise sources.DataError(
      f'the key {twice!r} occurs twice in one object; take the original file'
    )
  return result


def _check_added_ids(
  added: Sequence[dict[str, Any]], tokenizer: tokenizers.Tokenizer
) -> None:
  """Raises for a file some of whose ids the library silently replaces."""
  seen = set()
  for token in added:
    name, ours = token['content'], tokenizer.token_to_id(token['content'])
    if ours is None:
      raise sources.DataError(f'the added token {name!r} is no token')
    if ours != token['id']:
      raise sources.DataError(
        f'the added token {name!r} has id {token["id"]} but must '
        f'have {ours}, the next after the vocabulary; take the original file'
      )
    if name in seen:
      raise sources.DataError(
        f'the added token {name!r} occurs twice; take the original file'
      )
    seen.add(name)


def _check_ids(vocabulary: dict[str, int]) -> None:
  """Raises for ids that two tokens share, or that don't fit int32."""
  names = {}
  for name, token_id in vocabulary.items():
    if token_id > np.iinfo(np.int32).max:
      raise sources.DataError(
        f'the token {name!r} has id {token_id}, which is out of range; take '
        'the original file'
      )
    if names.setdefault(token_id, name) != name:
      first, second = sorted((names[token_id], name))
      raise sources.DataError(
        f'the tokens {first!r} and {second!r} share the id {token_id}; take '
        'the original file'
      )


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
