"""Decodes token ids one by one; yields only text that later ids can't change.

The text of an id depends on its neighbours. The bytes of one character may be
spread over several ids; with byte fallback (`<0xE4>`) a whole run of bytes is
read as text, or as one U+FFFD for each byte; and most decoders treat the first
id specially, so that a tail can't be decoded without some ids before it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

# At the end of a text it may become a character once more bytes come.
_REPLACEMENT = '\ufffd'
# Number of ids that are decoded again for each new one; at most about twice it.
_WINDOW = 48

Decode = Callable[[Sequence[int]], str]


def stream(
  ids: Iterable[int],
  decode: Decode,
  byte_ids: Collection[int],
  skipped_ids: Collection[int],
) -> Iterator[str]:
  """Yields text that, joined, is `decode` of all the ids.

  Args:
    ids: ids, one by one.
    decode: returns the text of ids; the text of more ids must begin with that
      of fewer, except for bytes that are incomplete.
    byte_ids: ids that stand for single bytes.
    skipped_ids: ids that have no text.
  """
  # `window` is decoded again for each id. Its first part, already yielded, is
  # context that the decoder needs for the rest; `before` is that part's length.
  window: list[int] = []
  before = yielded = sure = 0
  text, in_bytes = '', False
  for token_id in ids:
    window.append(token_id)
    if token_id in skipped_ids:
      continue
    begins = token_id in byte_ids and not in_bytes
    in_bytes = token_id in byte_ids
    if begins:
      sure = len(text) - text.endswith(_REPLACEMENT)
    text = decode(window)
    if not in_bytes:
      sure = len(text) - text.endswith(_REPLACEMENT)
    if sure > yielded:
      yield text[yielded:sure]
      yielded = sure
    if yielded == len(text) and len(window) - before >= _WINDOW:
      # All text is yielded, so the older half of the window can go.
      rest = window[before:]
      shorter = decode(rest)
      if shorter and before:
        window, text, yielded = rest, shorter, len(shorter)
        sure = yielded
      before = len(window)
  if (text := decode(window))[yielded:]:
    yield text[yielded:]
