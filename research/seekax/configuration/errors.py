"""What a user gave that can't be used, and the nearest thing that can."""

import difflib


class InputError(ValueError):
  """What the user gave can't be used; one line says what, where, the fix.

  Attributes:
    exit_code: of the command that it ends.
  """

  exit_code = 2


class ConfigError(InputError):
  """A configuration that can't work."""


def did_you_mean(word: str, known) -> str:
  """Returns '; did you mean X?' for the nearest known word, or ''."""
  near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
  return f'; did you mean {near[0]!r}?' if near else ''
