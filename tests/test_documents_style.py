"""The form of README, docs/ and the docstrings and comments of the library."""

import ast
from collections.abc import Iterator
import dataclasses
import inspect
import io
import pathlib
import re
import tokenize

from absl.testing import absltest, parameterized

from seekax.configuration.config import GROUPS
import short_runs

_ROOT = short_runs.ROOT
_PAGES = sorted((_ROOT / 'docs').glob('*.md'))
_NARROW = [_ROOT / 'README.md', *_PAGES]
_LINKED = [
  *_NARROW,
  _ROOT / 'CONTRIBUTING.md',
  _ROOT / 'experiments' / 'README.md',
  _ROOT / 'research' / 'seekax' / 'README.md',
]
_LIBRARY = _ROOT / 'research' / 'seekax'
_README_LINES = 150
_WIDTH = 120
_URL = re.compile(r'https?://[^\s)>]+')
_LINK = re.compile(r'\]\(([^)\s]+)\)')
_CODE = re.compile(r'`[^`]*`')
_KEY = re.compile(r'(?:(?<=config\.)|(?<![\w./]))([a-z]\w+)\.([a-z]\w+)')
# Endings of file names, and attributes of models in Python.
_ENDINGS = ('md', 'py', 'safetensors', 'generate', 'score', 'tokenizer')
_ENDINGS += ('logits', 'weights', 'json', 'npy')
# At the start of a text, a paragraph, an item or a cell, or after a sentence.
_OF = re.compile(
  r'(?:\A[\s*>-]*|[.!?:|]\s+|\n\s*\n[\s*>-]*|\n\s*[-*]\s+)(Of|Those of)\s'
)
# Words that readers of the library's code had to guess at.
_DIALECT = re.compile(r'foretell|makes\s+forward|in\s+vain', re.I)


def _prose(text: str) -> str:
  """The text without its fenced blocks, whose lines stay, empty."""
  lines, fenced = [], False
  for line in text.splitlines():
    fence = line.lstrip().startswith('```')
    fenced ^= fence
    lines.append('' if fenced or fence else line)
  return '\n'.join(lines)


def too_wide(text: str) -> list[str]:
  """Lines outside of fenced blocks that are too long without their URLs."""
  lines = _prose(text).splitlines()
  return [x for x in lines if len(_URL.sub('', x)) >= _WIDTH]


def begin_with_of(text: str) -> list[str]:
  """The beginnings of sentences that nobody speaks."""
  prose = _CODE.sub('', _prose(text)).replace('**', '')
  return [prose[m.start(1) :][:60] for m in _OF.finditer(prose)]


def remarks(source: str) -> Iterator[str]:
  """Docstrings and comments of Python code; lines of one comment are joined."""
  for node in ast.walk(ast.parse(source)):
    match node:
      case ast.Expr(value=ast.Constant(value=str(text))):
        yield inspect.cleandoc(text)
  lines, following = [], None
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      row, column = token.start
      if (row, column) != following:
        yield '\n'.join(lines)
        lines = []
      lines.append(token.string.lstrip('#').strip())
      after_code = token.line[:column].strip()
      following = None if after_code else (row + 1, column)
  yield '\n'.join(lines)


def unclear_remarks(source: str) -> list[str]:
  """What `begin_with_of` and `_DIALECT` find in docstrings and comments."""
  found = []
  for text in remarks(source):
    found += begin_with_of(text)
    found += [match[0] for match in _DIALECT.finditer(text)]
  return found


def broken_links(text: str, folder: pathlib.Path) -> list[str]:
  """Relative links to files that aren't there."""
  paths = (x.partition('#')[0] for x in _LINK.findall(_prose(text)))
  return [
    path
    for path in paths
    if path and not _URL.match(path) and not (folder / path).exists()
  ]


def unknown_keys(text: str) -> list[str]:
  """Config keys in the text, also in its commands, that don't exist."""
  return [
    match[0]
    for match in _KEY.finditer(text)
    if match[1] in GROUPS
    and match[2] not in _ENDINGS
    and not match[2].endswith('_')  # Stands for several.
    and match[2] not in {x.name for x in dataclasses.fields(GROUPS[match[1]])}
  ]


def _named(paths: list[pathlib.Path]) -> list[tuple[str]]:
  return [(path.relative_to(_ROOT).as_posix(),) for path in paths]


class DocumentsTest(parameterized.TestCase):
  def test_readme_is_short(self):
    lines = (_ROOT / 'README.md').read_text().splitlines()
    self.assertLessEqual(len(lines), _README_LINES)

  @parameterized.parameters(_named(_NARROW))
  def test_lines_are_narrow(self, name):
    self.assertEmpty(too_wide((_ROOT / name).read_text()))

  @parameterized.parameters(_named(_NARROW))
  def test_sentences_begin_with_their_subject(self, name):
    self.assertEmpty(begin_with_of((_ROOT / name).read_text()))

  @parameterized.parameters(_named(_LINKED))
  def test_links_lead_to_files(self, name):
    path = _ROOT / name
    self.assertEmpty(broken_links(path.read_text(), path.parent))

  @parameterized.parameters(_named(_LINKED))
  def test_keys_exist(self, name):
    self.assertEmpty(unknown_keys((_ROOT / name).read_text()))

  def test_library_speaks_plainly(self):
    found = {
      path.relative_to(_LIBRARY).as_posix(): unclear
      for path in sorted(_LIBRARY.rglob('*.py'))
      if (unclear := unclear_remarks(path.read_text()))
    }
    self.assertEmpty(found)

  def test_every_page_is_in_the_index(self):
    index = (_ROOT / 'docs' / 'README.md').read_text()
    pages = {path.name for path in _PAGES} - {'README.md'}
    self.assertContainsSubset(pages, set(_LINK.findall(index)))


class ChecksTest(parameterized.TestCase):
  """What the checks above would find."""

  def test_width(self):
    wide, url = 'x' * _WIDTH, 'https://example.org/' + 'x' * _WIDTH
    self.assertEqual(too_wide(f'short\n{wide}\n{url}'), [wide])
    self.assertEmpty(too_wide(f'```\n{wide}\n```'))

  @parameterized.parameters(
    ('Of these two are.', True),
    ('Here. Those of V3 are.', True),
    ('- Of these', True),
    ('| Of these |', True),
    ('Here.\nOf these', True),
    ('**Of these**', True),
    ('two of these. Office hours. A list of: all.', False),
    ('```\nOf these\n```', False),
  )
  def test_beginnings(self, text, found):
    self.assertEqual(bool(begin_with_of(text)), found)

  @parameterized.parameters(
    ('"""Of these."""', True),
    ('def f():\n  """One.\n\n  Those of V3 are.\n  """', True),
    ('x = 1  # Of these.', True),
    ('x = 1  # one\ny = 2  # Of these', True),
    ('# These are\n# two. Of these one.', True),
    ('# It foretells.', True),
    ('def f():\n  # It makes\n  # forward.\n  pass', True),
    ('"""In vain."""', True),
    ('# Two\n# Of these: no sentence begins.', False),
    ('x = "Of these"  # two of these', False),
  )
  def test_remarks(self, source, found):
    self.assertEqual(bool(unclear_remarks(source)), found)

  def test_links(self):
    text = '[a](README.md#x) [b](no.md) [c](https://x.org/a) `d` [e](#x)'
    self.assertEqual(broken_links(text, _ROOT), ['no.md'])

  def test_keys(self):
    text = '`train.step=3`, `cli/train.py`, `--config.train.steps=3 optim.name`'
    self.assertEqual(unknown_keys(text), ['train.step'])


if __name__ == '__main__':
  absltest.main()
