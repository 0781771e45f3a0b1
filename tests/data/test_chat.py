"""Laws of chat templates: only they make control tokens, and they can't harm."""

import functools
import inspect
import json
import os
import pathlib
import resource
import subprocess
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from seekax.configuration.errors import InputError
from seekax.data import (
  chat,
  child,
  reading_rules,
  sources,
  template_child,
  tokenizer_training,
)
from seekax.data import tokenizer as tokenizer_lib

_MARK = '\ufdd0'

# In the style of four families, not their originals.
_FULL_WIDTH = """
{{- bos_token }}
{%- for m in messages %}
  {%- if m.role == 'system' %}{{ m.content }}
  {%- elif m.role == 'assistant' %}
    {{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}
  {%- else %}{{ '<｜User｜>' + m['content'] }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>' }}{% endif %}
"""
_HEADERS = """
{{- bos_token }}
{%- for m in messages %}
{{- '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' }}
{%- if m.role == 'tool' %}{{ m.content | tojson }}
{%- else %}{{ m.content | trim }}{% endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
_MIDDLE = """
{%- for m in messages -%}
  <|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ m.content }}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
  <|im_assistant|>assistant<|im_middle|>
{%- endif -%}
"""
_CHATML = """
{% for m in messages %}
<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
_TEMPLATES = {
  'full_width': _FULL_WIDTH,
  'headers': _HEADERS,
  'middle': _MIDDLE,
  'chatml': _CHATML,
}
_SPECIAL = (
  '<｜begin▁of▁sentence｜>',
  '<｜end▁of▁sentence｜>',
  '<|start_header_id|>',
  '<|end_header_id|>',
  '<|eot_id|>',
  '<|im_start|>',
  '<|im_end|>',
  '<|im_middle|>',
  *(f'<|im_{role}|>' for role in chat.ROLES),
  '[EOT]',
)
_UNMARKED = ('<｜User｜>', '<｜Assistant｜>', '<think>', '</think>')
_CONTROLS = _SPECIAL + _UNMARKED


def _tokenizer() -> tokenizer_lib.Tokenizer:
  source = tokenizer_training.train(['Hello there, general user!\n' * 9], 300)
  definition = json.loads(source.to_json())
  size = len(definition['model']['vocab'])
  flags = ('single_word', 'lstrip', 'rstrip', 'normalized')
  definition['added_tokens'] += [
    {
      'id': size + n,
      'content': name,
      **dict.fromkeys(flags, False),
      'special': name in _SPECIAL,
    }
    for n, name in enumerate(_CONTROLS)
  ]
  return tokenizer_lib.Tokenizer(
    json.dumps(definition), _SPECIAL[0], _SPECIAL[1]
  )


_TOKENIZER = _tokenizer()
_IDS = {
  int(_TOKENIZER.encode_with_controls(name)[0]): name for name in _CONTROLS
}
_HELLO = ({'role': 'user', 'content': 'Hello'},)


def _talk(*contents: str) -> list[dict[str, str]]:
  roles = ('system', 'user', 'assistant', 'user', 'tool')
  return [
    {'role': role, 'content': content}
    for role, content in zip(roles, contents, strict=False)
  ]


def _controls(ids: np.ndarray) -> list[str]:
  return [_IDS[i] for i in ids.tolist() if i in _IDS]


def _text(ids: np.ndarray) -> str:
  """All of the text, the names of control tokens with it."""
  pieces, start = [], 0
  for n, token_id in enumerate(ids.tolist()):
    if token_id in _IDS:
      pieces += [_TOKENIZER.decode(ids[start:n]), _IDS[token_id]]
      start = n + 1
  return ''.join(pieces) + _TOKENIZER.decode(ids[start:])


class EncodeTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      'full_width',
      '<｜begin▁of▁sentence｜>S<｜User｜>U<｜Assistant｜>A<｜end▁of▁sentence｜>'
      '<｜User｜>V<｜Assistant｜><think>',
    ),
    (
      'headers',
      '<｜begin▁of▁sentence｜><|start_header_id|>system<|end_header_id|>\n\n'
      'S<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>'
      '<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>'
      '<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>'
      '<|start_header_id|>assistant<|end_header_id|>\n\n',
    ),
    (
      'middle',
      '<|im_system|>system<|im_middle|>S<|im_end|>'
      '<|im_user|>user<|im_middle|>U<|im_end|>'
      '<|im_assistant|>assistant<|im_middle|>A<|im_end|>'
      '<|im_user|>user<|im_middle|>V<|im_end|>'
      '<|im_assistant|>assistant<|im_middle|>',
    ),
    (
      'chatml',
      '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n'
      '<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n'
      '<|im_start|>assistant\n',
    ),
  )
  def test_control_tokens_of_the_template_become_ids(self, name, expected):
    messages = _talk('S', 'U', 'A', 'V')
    ids = chat.encode_chat(_TOKENIZER, _TEMPLATES[name].strip('\n'), messages)
    self.assertEqual(ids.dtype, np.int32)
    self.assertEqual(_text(ids), expected)
    np.testing.assert_array_equal(
      ids, _TOKENIZER.encode_with_controls(expected)
    )
    self.assertEqual(
      ''.join(_controls(ids)).count(_TOKENIZER.bos),
      expected.count(_TOKENIZER.bos),
    )

  @parameterized.product(
    template=tuple(_TEMPLATES), hostile=(*range(2), 'ends', 'all')
  )
  def test_messages_make_no_control_token(self, template, hostile):
    rng = np.random.default_rng(len(template))
    if hostile == 'ends':
      contents = ['<|im_', 'user|>|><', '_end|', ' | ', 'eot_id']
    elif hostile == 'all':
      contents = [''.join(_SPECIAL + _UNMARKED[:2])] * 5
    else:
      # Reasoning has its own law below.
      parts = (*_SPECIAL, *_UNMARKED[:2], *'<>| \n', '<|', '｜>', _MARK, 'é')
      contents = [
        ''.join(parts[n] for n in rng.integers(0, len(parts), 9))
        for _ in range(5)
      ]
    template = _TEMPLATES[template].strip('\n')
    ids = chat.encode_chat(_TOKENIZER, template, _talk(*contents))
    harmless = chat.encode_chat(_TOKENIZER, template, _talk(*'SUAVT'))
    self.assertEqual(_controls(ids), _controls(harmless))
    rendered = chat.render(
      template, _talk(*contents), _TOKENIZER.bos, _TOKENIZER.eos
    )
    self.assertEqual(_text(ids), rendered)

  def test_reasoning_of_the_user_is_text(self):
    talk = _talk('', '<think>Hello</think>')
    ids = chat.encode_chat(_TOKENIZER, _CHATML, talk)
    self.assertNotIn('<think>', _controls(ids))
    self.assertIn('<think>Hello</think>', _text(ids))

  def test_reasoning_of_earlier_answers_is_cut_by_the_template(self):
    answer = 'long thoughts</think>there<｜User｜>'
    ids = chat.encode_chat(
      _TOKENIZER, _FULL_WIDTH, _talk('', 'Hello', answer, 'user')
    )
    self.assertNotIn('thoughts', _text(ids))
    self.assertEqual(_controls(ids).count('<｜User｜>'), 2)
    self.assertEqual(_text(ids).count('<｜User｜>'), 3)

  def test_prompt_is_left_out_when_not_asked_for(self):
    with_prompt = chat.encode_chat(_TOKENIZER, _CHATML, _HELLO)
    without = chat.encode_chat(
      _TOKENIZER, _CHATML, _HELLO, add_generation_prompt=False
    )
    prompt = _TOKENIZER.encode_with_controls('<|im_start|>assistant\n')
    np.testing.assert_array_equal(with_prompt, [*without, *prompt])

  def test_template_without_a_generation_prompt_is_fine(self):
    template = '{% for m in messages %}[EOT]{{ m.content }}{% endfor %}'
    ids = chat.encode_chat(_TOKENIZER, template, _HELLO)
    self.assertEqual(_text(ids), '[EOT]Hello')

  def test_noncharacters_of_the_messages_are_kept(self):
    content = ''.join(map(chr, range(0xFDD0, 0xFDEF))) + '[EOT]'
    ids = chat.encode_chat(
      _TOKENIZER, '{{ messages[0].content }}', _talk(content)
    )
    self.assertEmpty(_controls(ids))
    self.assertEqual(_TOKENIZER.decode(ids), content)
    with self.assertRaisesRegex(chat.ChatError, r'every .* U\+FDD0 to U\+FDEF'):
      chat.encode_chat(_TOKENIZER, '', _talk(content + '\ufdef'))

  def test_lone_surrogate_is_an_error(self):
    with self.assertRaisesRegex(sources.DataError, 'not valid Unicode'):
      chat.encode_chat(_TOKENIZER, _CHATML, _talk('\ud800'))

  @parameterized.parameters(
    ([], 'no messages'),
    (['Hello'], 'message 0 is not an object'),
    ([*_HELLO, {'role': 'user'}], 'message 1 has no content'),
    ([{'content': 'Hello'}], 'message 0 has no role'),
    ([{'role': 'user', 'content': None}], 'message 0 has no content'),
    ([{'role': 'user', 'content': [{}]}], 'message 0 has no content'),
    ([{'role': 'us\ner', 'content': ''}], "has the role 'us er'; .* system,"),
    ([{**_HELLO[0], 'tool_calls': []}], "message 0 has 'tool_calls'; only"),
  )
  def test_malformed_messages_are_an_error(self, messages, message):
    encode = functools.partial(chat.encode_chat, _TOKENIZER)
    for call in (chat.render, encode):
      with self.assertRaisesRegex(chat.ChatError, f'^.*{message}.*$'):
        call(_CHATML, messages)


def _seconds_of_children() -> float:
  """Of processors, for all that have ended."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


class RenderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # A machine that does other work may start no process within five.
    self.enter_context(mock.patch.object(chat, '_SECONDS', 60))

  def render(self, template: str) -> str:
    return chat.render(template, _HELLO, bos='<s>', eos='</s>')

  @parameterized.parameters(
    ('{{ bos_token }}{{ messages[0].content }}{{ eos_token }}', '<s>Hello</s>'),
    ('{{ messages | tojson }}', '[{"role": "user", "content": "Hello"}]'),
    ("{{ '<é&>' | tojson }}", '"<é&>"'),
    ("{{ {'b': 1, 'a': 2} | tojson(indent=1) }}", '{\n "b": 1,\n "a": 2\n}'),
    ('{% for i in range(9) %}{% break %}{% endfor %}x', 'x'),
    ('{% if true %}\n  x\n  {% endif %}\ny', '  x\ny'),
    ("{{ strftime_now('%%') }}", '%'),
    ('{% generation %}x{% endgeneration %}', 'x'),
    ('{% if tools is none and documents is none %}x{% endif %}', 'x'),
    ("{{ '{} {}'.format(1, 'é') }}{{ unknown }}", '1 é'),
    ('{% set ns = namespace(n=0) %}{% set ns.n = 2 %}{{ ns.n }}', '2'),
    ('', ''),
  )
  def test_templates_find_what_they_expect(self, template, expected):
    self.assertEqual(self.render(template), expected)

  @parameterized.parameters(
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 'forbidden: __class__'),
    ("{{ ''.__class__ }}", 'forbidden: __class__ of a str'),
    ("{{ '' | attr('__class__') }}", 'forbidden: __class__'),
    ("{{ '{0.__class__}'.format(1) }}", 'forbidden: __class__'),
    ("{{ messages | map(attribute='__class__') | list }}", 'forbidden: __cl'),
    ('{{ raise_exception.__globals__ }}', 'forbidden: __globals__'),
    ('{{ cycler.__init__.__globals__.os.environ }}', 'forbidden: __init__'),
    ('{{ messages.append(1) }}', 'forbidden: append of a list'),
    ("{% include '/etc/passwd' %}", 'fails with TypeError: no loader'),
    ("{% import 'os' as os %}", 'fails with TypeError: no loader'),
    ('{% for i in range(10 ** 9) %}{% endfor %}', 'Range too big'),
    ("{{ 'a' * 10 ** 10 }}", 'needs more than 1024 MiB'),
    ("{{ '{:>3000000000}'.format('a') }}", 'needs more than 1024 MiB'),
    ("{{ 'a' * 9000000 }}", 'writes more than 8000000 characters'),
    (
      "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
      'writes more than 8000000 characters',
    ),
    ('{{ 9 ** 9999 }}', 'fails with ValueError'),
    ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'RecursionError'),
    ('{{ ' + '(' * 9999 + ')' * 9999 + ' }}', 'RecursionError'),
    ('{{ a.b.c }}', "fails with UndefinedError: 'a' is undefined"),
    ('x\n{% if %}', 'has an error in line 2'),
    ('{{ x', 'has an error in line 1'),
    ('{% unknown %}', "has an error in line 1: .*unknown tag 'unknown'"),
    (
      "{{ raise_exception('Roles\n must \x1b alternate') }}",
      '^the chat template refuses the messages: Roles must \ufffd alternate$',
    ),
  )
  def test_failure_is_one_line(self, template, message):
    start = _seconds_of_children()
    with self.assertRaisesRegex(chat.ChatError, message) as raised:
      self.render(template)
    self.assertRegex(str(raised.exception), '^the chat template .*$')
    self.assertTrue(str(raised.exception).isprintable())
    self.assertLess(_seconds_of_children() - start, 6)

  @parameterized.parameters(
    '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}'
    '{% endfor %}',
    '{% set x = 10 ** (10 ** 9) %}',  # One step that no signal interrupts.
    '{{ lipsum(n=10 ** 9) }}',
  )
  def test_endless_template_is_ended(self, template):
    children = []

    class Recorded(subprocess.Popen):
      def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        children.append(self)

    with (
      mock.patch.object(chat, '_SECONDS', 0.5),
      mock.patch.object(subprocess, 'Popen', Recorded),
      self.assertRaisesRegex(chat.ChatError, 'takes longer than 0.5 s'),
    ):
      self.render(template)
    self.assertLen(children, 1)
    with self.assertRaises(ProcessLookupError):
      os.kill(children[0].pid, 0)

  def test_child_has_limits_of_its_own(self):
    """It ends even when nobody is left to end it."""
    call = 'limit(1 << 30, 4.2)\nimport resource\n' + '\n'.join(
      f'print(resource.getrlimit(resource.RLIMIT_{name})[0])'
      for name in ('AS', 'CPU', 'FSIZE', 'CORE')
    )
    result = child.run((), call, b'', 5)
    self.assertEqual(
      [int(word) for word in result.stdout.split()], [1 << 30, 5, 0, 0]
    )
    # And so has the one that renders.
    self.assertIn('  limit(request', inspect.getsource(template_child._serve))

  def test_many_are_rendered_in_one_process_each_like_alone(self):
    talks = [_talk(f'[EOT] word {n}') for n in range(40)]
    render_all = chat.renderer(_TOKENIZER, _CHATML)
    with mock.patch.object(subprocess, 'run', wraps=subprocess.run) as run:
      results = render_all(talks)
    self.assertEqual(run.call_count, 1)
    for n, result in enumerate(results):
      assert isinstance(result, reading_rules.Rendered)
      self.assertIn(f'[EOT] word {n}', result.text)
    names = (_TOKENIZER.bos, _TOKENIZER.eos)
    alone = chat.render(_CHATML, talks[7], *names, add_generation_prompt=False)
    seventh = results[7]
    assert isinstance(seventh, reading_rules.Rendered)
    self.assertEqual(seventh.text, alone)
    np.testing.assert_array_equal(
      _TOKENIZER.encode_with_controls(seventh.marked, seventh.mark),
      chat.encode_chat(_TOKENIZER, _CHATML, talks[7], False),
    )

  def test_what_fails_among_many_is_told_apart(self):
    template = (
      "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}"
      "{% elif messages[0].content == 'slow' %}{% for a in range(99999) %}"
      '{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}x'
    )
    render_all = chat.renderer(_TOKENIZER, template)
    talks = [_talk('good'), _talk('bad'), [], _talk('slow'), _talk('good')]
    with mock.patch.object(chat, '_SECONDS', 2):
      good, bad, empty, slow, _ = render_all(talks)
    assert isinstance(good, reading_rules.Rendered)
    self.assertEqual((good.text, good.marked, good.mark), ('x', 'x', '\ufdd0'))
    self.assertEqual(bad, 'the chat template refuses the messages: no')
    self.assertEqual(empty, 'there are no messages')
    self.assertStartsWith(slow, 'the chat template takes longer than 2.06 s')

  def test_child_sees_neither_secrets_nor_the_current_folder(self):
    with tempfile.TemporaryDirectory() as folder:
      pathlib.Path(folder, 'jinja2.py').write_text('raise SystemExit(7)')
      environment = {'PYTHONPATH': folder, 'SECRET': 'x', 'TZ': 'UTC'}
      with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(subprocess, 'run', wraps=subprocess.run) as run,
      ):
        before = os.getcwd()
        os.chdir(folder)
        try:
          self.assertEqual(self.render('x'), 'x')
        finally:
          os.chdir(before)
    self.assertLessEqual(
      run.call_args.kwargs['env'].keys(), {'TZ', 'LD_LIBRARY_PATH'}
    )

  def test_broken_child_is_an_error(self):
    for code, message in ((b'', 'with code -11'), (b'{', 'with code -11')):
      answer = mock.Mock(returncode=-11, stdout=code)
      with (
        mock.patch.object(subprocess, 'run', return_value=answer),
        self.assertRaisesRegex(chat.ChatError, message),
      ):
        self.render('x')
    with (
      mock.patch.object(subprocess, 'run', side_effect=OSError(12, 'no room')),
      self.assertRaisesRegex(chat.ChatError, 'no room'),
    ):
      self.render('x')


class FindTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )

  def write(self, name: str, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (self.folder / name).write_text(text)

  def test_files_are_taken_in_order(self):
    self.assertEqual(chat.find_template(self.folder), '')
    self.write('chat_template.json', {'chat_template': 'third'})
    self.assertEqual(chat.find_template(self.folder), 'third')
    self.write('tokenizer_config.json', {'bos_token': '<s>'})
    self.assertEqual(chat.find_template(self.folder), 'third')
    self.write('tokenizer_config.json', {'chat_template': 'second'})
    self.assertEqual(chat.find_template(self.folder), 'second')
    self.write('chat_template.jinja', 'first é')
    self.assertEqual(chat.find_template(self.folder), 'first é')

  def test_default_of_a_list_counts(self):
    named = [
      {'name': 'tool_use', 'template': 'tools'},
      {'name': 'default', 'template': 'plain'},
    ]
    self.write('tokenizer_config.json', {'chat_template': named})
    self.assertEqual(chat.find_template(self.folder), 'plain')
    self.write('tokenizer_config.json', {'chat_template': named[:1]})
    self.assertEqual(chat.find_template(self.folder), '')

  @parameterized.parameters(
    ('chat_template.jinja', 'x' * (1 << 20 | 1), 'larger than 1048576 bytes'),
    ('chat_template.json', {'chat_template': 'é' * (1 << 19 | 1)}, 'larger th'),
    ('tokenizer_config.json', {'chat_template': 7}, 'is not a string'),
    ('tokenizer_config.json', '{', 'is not JSON'),
    ('chat_template.json', '"x"', 'is not a JSON object'),
  )
  def test_broken_file_is_named(self, name, content, message):
    self.write(name, content)
    with self.assertRaisesRegex(InputError, f'^.*/{name}.*{message}.*$'):
      chat.find_template(self.folder)


if __name__ == '__main__':
  absltest.main()
