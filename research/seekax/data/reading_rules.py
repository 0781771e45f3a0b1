"""What a document is, and the rules by which files become documents."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from seekax.configuration.data import DataConfig
from seekax.configuration.errors import InputError


class DataError(InputError):
  """Data that can't be used; the message says what, where, and the fix."""


class NotTextError(DataError):
  """A file holds no text; it is skipped if there are others."""


class NotUtf8Error(NotTextError):
  """A file has another encoding."""


@dataclasses.dataclass(frozen=True)
class Document:
  """A text with a name.

  Attributes:
    name: unique, and the same on every machine.
    text: the text.
    marked: for a conversation that a chat template rendered, the text with
      `mark` in it, for `Tokenizer.encode_with_controls`.
    mark: the character that `marked` contains; '' for other documents.
    from_messages: whether it is a conversation.
  """

  name: str
  text: str
  marked: str = ''
  mark: str = ''
  from_messages: bool = False


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A conversation as text; its fields are those of `Document`."""

  text: str
  marked: str = ''
  mark: str = ''


# As somebody wrote them; the template, or `render_plainly`, checks each.
Messages = Sequence[Any]


def render_plainly(conversations: Sequence[Messages]) -> list[Rendered | str]:
  """Renders conversations without a template: `role: content`, blank lines.

  Returns:
    One result for each; a string says why there is none.
  """
  return [_render_plainly(messages) for messages in conversations]


def _render_plainly(messages: Messages) -> Rendered | str:
  for message in messages:
    fields = message if isinstance(message, dict) else {}
    if not all(isinstance(fields.get(k), str) for k in ('role', 'content')):
      return 'a message is not an object of a role and a content, both strings'
  turns = (f'{m["role"]}: {m["content"]}\n' for m in messages)
  return Rendered('\n'.join(turns))


@dataclasses.dataclass(frozen=True)
class Rules:
  """How files are read.

  Attributes:
    text_field: the field of JSON lines or the column of parquet with the text.
    include: patterns of the files to read, '' for all; see `DataConfig`.
    exclude: patterns of the files to leave out.
    max_document_bytes: a longer document is refused.
    limit_option: the option that a message names as raising this limit.
    tokenizer: a tokenizer's path; its files are skipped if the source has them.
    render: turns conversations into text, as `render_plainly`.
    rendering: describes `render` in words.
  """

  text_field: str = 'text'
  include: str = ''
  exclude: str = ''
  max_document_bytes: int = DataConfig.max_document_bytes
  limit_option: str = '--config.data.max_document_bytes'
  tokenizer: str = ''
  render: Callable[[Sequence[Messages]], list[Rendered | str]] = render_plainly
  rendering: str = 'as plain text, for there is no chat template'


DEFAULT_RULES = Rules()


def rules_of(config: DataConfig) -> Rules:
  """The rules that a run's config gives."""
  return Rules(
    text_field=config.text_field,
    include=config.include,
    exclude=config.exclude,
    max_document_bytes=config.max_document_bytes,
    tokenizer=config.tokenizer,
  )
