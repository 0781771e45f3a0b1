"""Chat templates of released models: messages to text to ids.

A template is an untrusted program. Jinja's sandbox protects the machine's files
from it but limits neither its time nor its memory, so it runs in a child
process with limits to both. What users write never turns into a control token;
what the template writes does.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from seekax.configuration.errors import InputError
from seekax.data import child, tokenizer_files
from seekax.data import tokenizer as tokenizer_lib
from seekax.data.reading_rules import Rendered, Rules
from seekax.data.template_child import ask

ROLES = ('system', 'user', 'assistant', 'tool')

_SECONDS = 5  # Wall-clock limit; it includes the start of the interpreter.
# Added for each of the conversations that one process renders.
_SECONDS_EACH = 0.02
_MAX_MEMORY_BYTES = 1 << 30
_MAX_CHARACTERS = 8_000_000
_MAX_TEMPLATE_BYTES = 1 << 20
_MAX_MESSAGE_CHARACTERS = 300
# Unicode promises never to make these characters.
_NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
# Templates remove the reasoning from earlier answers at these marks.
_REASONING = ('<think>', '</think>')

Message = Mapping[str, str]


class ChatError(InputError):
  """Templates or messages that can't be used; one line says why."""


def find_template(folder: pathlib.Path) -> str:
  """Returns the chat template of a released model's folder, '' if none.

  It is `chat_template.jinja`, or else `chat_template` in
  `tokenizer_config.json` (the one named 'default' if that is a list), or else
  that in `chat_template.json`.

  Raises:
    InputError: a file is broken or too large.
  """
  text = tokenizer_files.read_small(
    folder / 'chat_template.jinja', _MAX_TEMPLATE_BYTES
  )
  if text:
    return text
  for name in ('tokenizer_config.json', 'chat_template.json'):
    path = folder / name
    template = tokenizer_files.read_json(path).get('chat_template')
    if text := _default_template(path, template):
      return text
  return ''


def _default_template(path: pathlib.Path, template: object) -> str:
  if isinstance(template, list):
    named = [entry for entry in template if isinstance(entry, dict)]
    chosen = [entry for entry in named if entry.get('name') == 'default']
    template = chosen[0].get('template') if chosen else None
  if template is None:
    return ''
  if not isinstance(template, str):
    raise ChatError(f'{path}: chat_template is not a string')
  if len(template.encode('utf-8', 'replace')) > _MAX_TEMPLATE_BYTES:
    raise ChatError(
      f'{path}: chat_template is larger than {_MAX_TEMPLATE_BYTES} bytes'
    )
  return template


def encode_chat(
  tokenizer: tokenizer_lib.Tokenizer,
  template: str,
  messages: Sequence[Message],
  add_generation_prompt: bool = True,
) -> np.ndarray:
  """Renders messages and encodes the result.

  Only the template can produce control tokens. If a message spells one, its
  characters are encoded; but <think> and </think> in earlier answers stay the
  tokens that the model wrote, or templates could not cut there.

  Args:
    tokenizer: the model's tokenizer.
    template: a Jinja chat template.
    messages: objects with `role` (one of `ROLES`) and `content`, latest last.
    add_generation_prompt: whether an answer is to follow.

  Returns:
    int32 ids [L] of the whole prompt, with BOS where the template puts it.
    int32 ids [L]: all of the prompt, with BOS where the template puts it.

  Raises:
    ChatError: see `render`.
    DataError: the text is not valid Unicode.
  """
  _check(messages)
  mark = _unused_character(template, messages)
  marked = _marked(tokenizer, messages, mark)
  text = render(
    template, marked, tokenizer.bos, tokenizer.eos, add_generation_prompt
  )
  return tokenizer.encode_with_controls(text, mark)


def _marked(
  tokenizer: tokenizer_lib.Tokenizer, messages: Sequence[Message], mark: str
) -> list[Message]:
  return [
    {
      'role': message['role'],
      'content': tokenizer.break_controls(
        message['content'],
        mark,
        keep=_REASONING if message['role'] == 'assistant' else (),
      ),
    }
    for message in messages
  ]


def renderer(
  tokenizer: tokenizer_lib.Tokenizer, template: str
) -> Callable[[Sequence[Sequence[Message]]], list[Rendered | str]]:
  """Returns a function that renders many conversations in one child process.

  It is meant for training text. Only the template can produce control tokens,
  as in `encode_chat`. No generation prompt is added.

  Args:
    tokenizer: the model's tokenizer.
    template: a Jinja chat template.

  Returns:
    A function of conversations. For each it returns the rendered text, or a
    string that says why there is none.
  """

  def render_all(
    conversations: Sequence[Sequence[Message]],
  ) -> list[Rendered | str]:
    results: list[Rendered | str] = [''] * len(conversations)
    requests, marks = {}, {}
    for number, messages in enumerate(conversations):
      try:
        _check(messages)
        marks[number] = _unused_character(template, messages)
        marked = _marked(tokenizer, messages, marks[number])
      except ChatError as error:
        results[number] = str(error)
        continue
      requests[number] = _variables(
        marked, tokenizer.bos, tokenizer.eos, add_generation_prompt=False
      )
    answers = _render_in_child(template, list(requests.values()))
    for number, answer in zip(requests, answers, strict=True):
      if 'text' in answer:
        text, mark = answer['text'], marks[number]
        results[number] = Rendered(text.replace(mark, ''), text, mark)
      else:
        results[number] = f'the chat template {_one_line(answer["error"])}'
    return results

  return render_all


def rules_with_template(
  rules: Rules, tokenizer: tokenizer_lib.Tokenizer, path: str
) -> tuple[Rules, str]:
  """Returns rules that render conversations by the tokenizer's own template.

  Args:
    rules: the rules to change.
    tokenizer: the tokenizer whose control tokens messages must not produce.
    path: its tokenizer.json, or the folder of it; '' for none.

  Returns:
    The rules, unchanged without a template, and its SHA-256, '' without one.

  Raises:
    InputError: see `find_template`.
  """
  folder = pathlib.Path(path)
  folder = folder if folder.is_dir() else folder.parent
  template = find_template(folder) if path else ''
  if not template:
    return rules, ''
  rules = dataclasses.replace(
    rules,
    render=renderer(tokenizer, template),
    rendering=f'by the chat template of {folder}',
  )
  return rules, hashlib.sha256(template.encode('utf-8', 'replace')).hexdigest()


def _unused_character(template: str, messages: Sequence[Message]) -> str:
  for character in _NONCHARACTERS:
    texts = (template, *(message['content'] for message in messages))
    if not any(character in text for text in texts):
      return character
  raise ChatError(
    'the messages hold every character from U+FDD0 to U+FDEF; remove one'
  )


def render(
  template: str,
  messages: Sequence[Message],
  bos: str = '',
  eos: str = '',
  add_generation_prompt: bool = True,
) -> str:
  """Renders a chat template as Hugging Face transformers does, in a sandbox.

  Args:
    template: a Jinja chat template.
    messages: see `encode_chat`.
    bos: the template's `bos_token`.
    eos: the template's `eos_token`.
    add_generation_prompt: the template's variable of this name.

  Raises:
    ChatError: the messages or the template are malformed, or the template
      refuses the messages, does what it must not, or exceeds a limit.
  """
  _check(messages)
  variables = _variables(messages, bos, eos, add_generation_prompt)
  (answer,) = _render_in_child(template, [variables])
  if 'text' not in answer:
    raise ChatError(f'the chat template {_one_line(answer["error"])}')
  return answer['text']


def _variables(
  messages: Sequence[Message], bos: str, eos: str, add_generation_prompt: bool
) -> dict[str, object]:
  return {
    'messages': [dict(message) for message in messages],
    'tools': None,
    'documents': None,
    'bos_token': bos,
    'eos_token': eos,
    'add_generation_prompt': add_generation_prompt,
  }


def _render_in_child(
  template: str, variables: Sequence[dict[str, object]]
) -> list[dict[str, str]]:
  """Returns {'text': ...} or {'error': ...} for each set of variables."""
  if not variables:
    return []
  seconds = _SECONDS + _SECONDS_EACH * (len(variables) - 1)
  request = {
    'template': template,
    'variables': variables,
    'path': child.folders_of('jinja2', 'markupsafe'),
    'seconds': seconds,
    'memory': _MAX_MEMORY_BYTES,
    'characters': _MAX_CHARACTERS,
  }
  answers, problem = ask(json.dumps(request).encode(), seconds)
  # The first one without an answer is the one that caused the problem.
  missing = len(variables) - len(answers)
  return answers + [{'error': problem}] * missing


def _check(messages: Sequence[Message]) -> None:
  if not messages:
    raise ChatError('there are no messages')
  for n, message in enumerate(messages):
    if not isinstance(message, Mapping):
      raise ChatError(f'message {n} is not an object of role and content')
    for key in ('role', 'content'):
      if not isinstance(message.get(key), str):
        raise ChatError(f'message {n} has no {key} that is a string')
    if message['role'] not in ROLES:
      role = _one_line(message['role'])
      raise ChatError(
        f'message {n} has the role {role!r}; it must be one of '
        f'{", ".join(ROLES)}'
      )
    # A template would write other keys without the guard of `encode_chat`.
    if other := sorted(map(str, message.keys() - {'role', 'content'})):
      raise ChatError(
        f'message {n} has {_one_line(other[0])!r}; only role and content are '
        'supported'
      )


def _one_line(text: str) -> str:
  """Makes untrusted text fit for a message on a terminal."""
  text = ' '.join(text.split())[:_MAX_MESSAGE_CHARACTERS]
  return ''.join(c if c.isprintable() else '\ufffd' for c in text)
