"""Encodes long texts in pieces: the tokens of the whole, in bounded memory.

A tokenizer takes some hundred bytes of memory per character, so a long text is
cut first. Tokenizers differ in where a cut changes nothing: for most, after a
word; some put a blank before every text, which then replaces the one in the
text. So a cut is made only where the tokenizer itself gives the same tokens
for the characters around it with and without the cut. This proves nothing for
a tokenizer that looks further than `_CONTEXT` characters; the published ones
see no further than the end of a word, which is where texts with words are cut.

A run of more than `SIZE` characters of one kind (letters, digits, white space,
others) has no such place. It is always cut at this length: the cut is part of
how seekax encodes text, and only there does it differ from the tokenizer's
library, whose time and stack such runs would exhaust. A tokenizer that puts a
blank before every text does so there as well.
"""

from collections.abc import Callable, Iterator
import re

from seekax.data.reading_rules import DataError

SIZE = 1 << 16  # Number of characters in a piece.
_LARGEST = 1 << 22  # Limit where the tokenizer accepts no earlier cut.
_CONTEXT = 512
_TRIES = 16

# Ends of words come first. The last two patterns also match between words that
# no blank separates, as in Chinese.
_WORD_ENDS = (r'(?<=[^\W\d_])(?=\s)', r'(?<=\S)(?=\s)')
_OTHER_PLACES = (
  r'(?<=\w)(?=[^\w\s])',
  r'(?<=[^\w\s])(?=\w)|(?<=\s)(?=\S)|(?<=\d)(?=[^\W\d])|(?<=[^\W\d])(?=\d)',
)
_PLACES = tuple(re.compile(p) for p in _WORD_ENDS + _OTHER_PLACES)

# Called with (left, gap, right): whether the tokens of left and of right are
# together those of the whole text, with the gap between them.
Agrees = Callable[[str, str, str], bool]


def cut(text: str, agrees: Agrees) -> Iterator[str]:
  """Yields the pieces of a text, in order; a short text is one piece.

  Between two pieces a single blank may be missing, where the tokenizer puts
  one before every text.

  Args:
    text: any text.
    agrees: whether the tokenizer accepts a cut; see `Agrees`.

  Raises:
    DataError: the text has words, but the tokenizer accepts no cut.
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
  """Whether a piece may end at `end` and the next one start at `following`."""
  gap = text[end:following]
  left = text[max(end - _CONTEXT, 0) : end]
  right = text[following : following + _CONTEXT]
  return gap in ('', ' ') and agrees(left, gap, right)
