"""Text of token ids that come one by one: only what no later id can change.

What a decoder makes of an id depends on its neighbours. Bytes of one character
may lie in several ids; with byte fallback (`<0xE4>`) a whole run of bytes is
read as text or as one U+FFFD for each; and most decoders treat the first id in
a way of its own, so that a tail can't be decoded without what is before it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

# Where two characters could still become one, after a byte is replaced.
_REPLACEMENT = '\ufffd'
# Ids that are decoded anew for every new one, at most about twice as many.
_WINDOW = 48

Decode = Callable[[Sequence[int]], str]


def stream(
  ids: Iterable[int],
  decode: Decode,
  byte_ids: Collection[int],
  skipped_ids: Collection[int],
) -> Iterator[str]:
  """Yields text that, joined, is what `decode` makes of all the ids.

  Args:
    ids: one by one.
    decode: the text of ids; what it says of more ids begins with what it said
      of fewer, but for bytes that are incomplete.
    byte_ids: of byte fallback.
    skipped_ids: of which `decode` makes nothing.
  """
  # `window` is decoded anew for each id. Its first part, already yielded, gives
  # the decoder something before the rest; `before` is that part's length.
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
      # Everything is said: the older half of the window may go.
      rest = window[before:]
      shorter = decode(rest)
      if shorter and before:
        window, text, yielded = rest, shorter, len(shorter)
        sure = yielded
      before = len(window)
  if (text := decode(window))[yielded:]:
    yield text[yielded:]
