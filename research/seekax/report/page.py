"""A page of results as one HTML file: its elements, and `render`.

The types are those of the template, report.html; they don't depend on runs.
"""

from collections.abc import Sequence
import importlib.resources
import re
from typing import NamedTuple

import jinja2

# Control characters that HTML must not contain, escaped or not.
_CONTROL = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]')


class Tile(NamedTuple):
  """A key figure: its name, its value, what to compare it with."""

  label: str
  value: str
  note: str = ''


class Entry(NamedTuple):
  """A row of a table; `code` sets the value in monospace."""

  key: str
  value: str
  note: str = ''
  marked: bool = False
  code: bool = False


class Table(NamedTuple):
  """A table that folds away under a title; `head` names its three columns."""

  title: str
  rows: Sequence[Entry]
  remark: str = ''
  head: Sequence[str] = ()
  open: bool = True


class Grid(NamedTuple):
  """Rows of cells under a head; on a narrow screen each cell repeats its head.

  `marked` is the number of the most important row, from 0; -1 for none.
  """

  title: str
  head: Sequence[str]
  rows: Sequence[Sequence[str]]
  remark: str = ''
  marked: int = -1


class Sample(NamedTuple):
  """A prompt and its continuation."""

  prompt: str
  text: str


class SampleBlock(NamedTuple):
  """Samples that belong together."""

  title: str
  samples: Sequence[Sample]


class Section(NamedTuple):
  """A heading, a sentence on what it shows, and figures, samples or tables."""

  title: str
  lead: str = ''
  figures: Sequence[str] = ()  # SVG elements
  samples: Sequence[SampleBlock] = ()
  tables: Sequence[Table] = ()
  grids: Sequence[Grid] = ()


class Page(NamedTuple):
  """A whole page: its kind, title and finding in words, then the sections."""

  kind: str
  title: str
  finding: str
  tiles: Sequence[Tile]
  sections: Sequence[Section]
  remark: str = ''
  footer: str = ''


def render(page: Page) -> str:
  """Returns the page as one HTML file that loads nothing else."""
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined
  )
  folder = importlib.resources.files('seekax.report')
  source = folder.joinpath('report.html').read_text(encoding='utf-8')
  html = _CONTROL.sub(
    '\ufffd', environment.from_string(source).render(page=page)
  )
  # JSON may hold half a surrogate pair; UTF-8 must not.
  return html.encode('utf-8', 'replace').decode() + '\n'
