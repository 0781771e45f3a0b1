"""The corpus of experiments that train: rows of labelled artificial domains.

Every row belongs to one domain of `DOMAINS`; tokens are ASCII codes, also where
they mean nothing.

Letters: B batch, L positions.
"""

import dataclasses
import functools
import itertools

import numpy as np

from seekax.data import sources
from seekax.data.pipeline import Batch

VOCAB = 128
DOMAINS = ('markov', 'arithmetic', 'brackets', 'names', 'text')
# Smaller forms of names and of arithmetic, learned in a thousand steps.
LETTERS, DIGITS = 'letters', 'digits'
ALL_DOMAINS = (*DOMAINS, LETTERS, DIGITS)


@dataclasses.dataclass(frozen=True)
class Rows:
  """Sequences of the corpus.

  Attributes:
    tokens: int32 [B, L + 1].
    domain_B: number in `ALL_DOMAINS`.
    answers: bool [B, L + 1], tokens that follow from those before: the second
      half of a name seen before in its row, the digits of a sum's result.
  """

  tokens: np.ndarray
  domain_B: np.ndarray
  answers: np.ndarray


@functools.cache
def _text() -> tuple[np.ndarray, np.ndarray]:
  """Training and held-out ASCII of Python's library; a file is in one."""
  parts = ([], [])
  for number, document in enumerate(sources.read_documents(sources.STDLIB)):
    content = document.text.encode('ascii', 'ignore')
    parts[number % 20 == 0].append(np.frombuffer(content, np.uint8))
  training, heldout = map(np.concatenate, parts)
  return training, heldout


@functools.cache
def _markov_table() -> np.ndarray:
  """Four possible next tokens after every two tokens."""
  return np.random.default_rng(0).integers(VOCAB, size=(VOCAB, VOCAB, 4))


def _markov(rng: np.random.Generator, length: int) -> list[int]:
  """A chain of order 2; the older token counts modulo 16."""
  tokens = list(rng.integers(VOCAB, size=2))
  for choice in np.minimum(rng.geometric(0.5, size=length) - 1, 3):
    tokens.append(_markov_table()[tokens[-2] % 16, tokens[-1], choice])
  return tokens[:length]


def _sums(
  rng: np.random.Generator, length: int, terms: int, modulus: int
) -> tuple[list[int], list[bool]]:
  """Modular sums, written out, and which characters are digits of results."""
  numbers = rng.integers(modulus, size=(length // 6 + 1, terms))
  line = ''.join(
    f'{"+".join(map(str, row))}={sum(row) % modulus};' for row in numbers
  )
  asked = itertools.accumulate(
    line, lambda inside, x: x != ';' and (inside or x == '='), initial=False
  )
  result = [old and x != ';' for old, x in zip(asked, line, strict=False)]
  return list(line.encode()[:length]), result[:length]


def _brackets(rng: np.random.Generator, length: int) -> list[int]:
  """Brackets of three kinds, correctly nested."""
  tokens, open_ones = [], []
  for opens, kind in zip(
    rng.random(length) < 0.5, rng.integers(3, size=length), strict=True
  ):
    if opens or not open_ones:
      open_ones.append(kind)
      tokens.append(ord('([{'[kind]))
    else:
      tokens.append(ord(')]}'[open_ones.pop()]))
  return tokens


def _names(
  rng: np.random.Generator,
  length: int,
  firsts: np.ndarray,
  seconds: np.ndarray,
  count: int,
) -> tuple[list[int], list[bool]]:
  """Names of two random tokens, `count` of them per row, and which recur."""
  first = rng.permutation(firsts)[:count]
  second = seconds[rng.integers(len(seconds), size=count)]
  order = rng.integers(count, size=length // 2 + 1)
  seen, tokens, recalled = set(), [], []
  for name in order:
    tokens += [first[name], second[name]]
    recalled += [False, name in seen]
    seen.add(name)
  return tokens[:length], recalled[:length]


# (generator, length) to tokens, and which of them follow from those before.
_WITH_ANSWERS = {
  'names': functools.partial(
    _names, firsts=np.arange(VOCAB), seconds=np.arange(VOCAB), count=8
  ),
  LETTERS: functools.partial(
    _names,
    firsts=np.frombuffer(b'ABCDEFGH', np.uint8),
    seconds=np.frombuffer(b'abcdefgh', np.uint8),
    count=4,
  ),
  'arithmetic': functools.partial(_sums, terms=2, modulus=97),
  DIGITS: functools.partial(_sums, terms=2, modulus=10),
}


def draw_rows(
  rng: np.random.Generator,
  count: int,
  length: int,
  domains: tuple[str, ...] = DOMAINS,
  heldout: bool = False,
) -> Rows:
  """`count` rows of `length` + 1 tokens, each of a domain chosen at random."""
  tokens = np.zeros((count, length + 1), np.int32)
  answers = np.zeros((count, length + 1), bool)
  domain_B = rng.integers(len(domains), size=count)
  for row, number in enumerate(domain_B):
    kind = domains[number]
    if kind in _WITH_ANSWERS:
      tokens[row], answers[row] = _WITH_ANSWERS[kind](rng, length + 1)
    elif kind == 'text':
      text = _text()[heldout]
      start = rng.integers(len(text) - length)
      tokens[row] = text[start : start + length + 1]
    else:
      make = {'markov': _markov, 'brackets': _brackets}[kind]
      tokens[row] = make(rng, length + 1)
  labels_B = np.array([ALL_DOMAINS.index(domains[x]) for x in domain_B])
  return Rows(tokens, labels_B, answers)


def batch_of(tokens: np.ndarray) -> Batch:
  """Whole rows [B, L + 1] as a batch; every row is one document."""
  inputs_BL = tokens[:, :-1]
  ones_BL = np.ones_like(inputs_BL)
  positions_BL = np.broadcast_to(
    np.arange(inputs_BL.shape[1], dtype=np.int32), inputs_BL.shape
  )
  return Batch(inputs_BL, tokens[:, 1:], positions_BL, ones_BL, ones_BL)
