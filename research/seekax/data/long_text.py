"""Long texts, encoded in pieces: the tokens of the whole, in bounded memory.

A tokenizer's work on a text takes some hundred bytes per character, so a long
one is cut before. Tokenizers differ in where that changes nothing: after a word
for most; some put a blank before every text, which then stands for the one in
the text. So a place is taken only if the tokenizer itself, asked about the
characters around it, gives the same with and without the cut. That is no proof
for a tokenizer that looks further than `_CONTEXT`; none is known to, as to
which place is taken: preferably the end of a word.

A run of more than `SIZE` characters of one kind (letters, digits, white space,
others) has no such place. It is cut at this length, always and everywhere: the
cut is part of how seekax encodes text, and there alone it differs from the
tokenizer's library, whose time and stack such runs would exhaust.
"""

from collections.abc import Callable, Iterator
import re

from seekax.data.formats import DataError

SIZE = 1 << 16  # Characters of a piece.
_LARGEST = 1 << 22  # If a tokenizer agrees to no place before.
_CONTEXT = 512
_TRIES = 16

# Ends of words first. A place of the last two kinds may lie between words that
# are not separated by blanks, as in Chinese.
_WORD_ENDS = (r'(?<=[^\W\d_])(?=\s)', r'(?<=\S)(?=\s)')
_OTHER_PLACES = (
  r'(?<=\w)(?=[^\w\s])',
  r'(?<=[^\w\s])(?=\w)|(?<=\s)(?=\S)|(?<=\d)(?=[^\W\d])|(?<=[^\W\d])(?=\d)',
)
_PLACES = tuple(map(re.compile, _WORD_ENDS + _OTHER_PLACES))

# Of (left, gap, right): whether left and right give together what the whole
# text, with the gap between them, gives.
Agrees = Callable[[str, str, str], bool]


def cut(text: str, agrees: Agrees) -> Iterator[str]:
  """Yields the pieces of a text, in order; a short text is one.

  Between two pieces a single blank may be missing, where the tokenizer puts
  one before every text.

  Args:
    text: any text.
    agrees: what the tokenizer says of a place; see `Agrees`.

  Raises:
    DataError: the text has words, but the tokenizer agrees to no place.
  """
  start = 0
  while len(text) - start > SIZE:
    end, following = _find_place(text, start, agrees)
    yield text[start:end]
    start = following
  if start < len(text) or not text:
    yield text[start:]


def _find_place(text: str, start: int, agrees: Agrees) -> tuple[int, int]:
  """Returns where a piece ends, and where the next one starts."""
  size = SIZE
  while True:
    end, has_words = min(start + size, len(text)), False
    for kind, places in enumerate(_PLACES):
      found = [m.start() for m in places.finditer(text, start + 1, end)]
      has_words |= bool(found) and kind < len(_WORD_ENDS)
      for place in reversed(found[-_TRIES:]):
        for following in (place, place + 1):
          if _is_safe(text, place, following, agrees):
            return place, following
    if not has_words:
      return start + SIZE, start + SIZE
    if end == len(text):
      return end, end
    size *= 2
    if size > _LARGEST:
      raise DataError(
        f'a document of {len(text)} characters is too long for this tokenizer, '
        'which joins words across blanks, so that it can not be encoded in '
        f'parts; cut it into documents below {_LARGEST} characters'
      )


def _is_safe(text: str, end: int, following: int, agrees: Agrees) -> bool:
  """Whether a piece may end here, and the next one start there."""
  gap = text[end:following]
  left = text[max(end - _CONTEXT, 0) : end]
  right = text[following : following + _CONTEXT]
  return gap in ('', ' ') and agrees(left, gap, right)
