"""Every notebook runs from a clean kernel, in its smoke form, and stays short."""

import contextlib
from importlib import metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import nbclient
import nbformat

_FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'colabs'
_MOST_CELLS = 24
# A quiet machine takes some seconds; compilation is slow beside other work.
_SECONDS = 120
# Where somebody's own folders begin.
_ABSOLUTE_PATH = re.compile(r'(?<![\w./:])(/(home|root|Users|tmp)/|[A-Z]:\\)')

_COLAB = (
  'https://colab.research.google.com/github/seekax/seekax/blob/main/colabs/'
)

_NOTEBOOKS = [(path.name,) for path in sorted(_FOLDER.glob('*.ipynb'))]


def _read(name: str) -> nbformat.NotebookNode:
  notebook = nbformat.read(_FOLDER / name, as_version=4)
  assert isinstance(notebook, nbformat.NotebookNode)
  return notebook


class ColabsTest(parameterized.TestCase):
  def test_there_are_notebooks(self):
    self.assertNotEmpty(_NOTEBOOKS)

  @parameterized.parameters(_NOTEBOOKS)
  def test_runs_from_a_clean_kernel(self, name):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    environment = {
      'SEEKAX_SMOKE': '1',
      # Nothing is read from the home folder or written there.
      'SEEKAX_CACHE': f'{folder}/cache',
      'IPYTHONDIR': f'{folder}/ipython',
      'JUPYTER_CONFIG_DIR': f'{folder}/jupyter',
      # Without it jupyter_core warns of folders that it will use some day.
      'JUPYTER_PLATFORM_DIRS': '1',
    }
    self.enter_context(mock.patch.dict(os.environ, environment))
    nbclient.NotebookClient(
      _read(name),
      timeout=_SECONDS,
      kernel_name='python3',
      resources={'metadata': {'path': folder}},
    ).execute()

  @parameterized.parameters(_NOTEBOOKS)
  def test_is_short(self, name):
    self.assertLessEqual(len(_read(name).cells), _MOST_CELLS)

  @parameterized.parameters(_NOTEBOOKS)
  def test_is_kept_without_outputs(self, name):
    for cell in _read(name).cells:
      self.assertFalse(cell.get('outputs'))
      self.assertIsNone(cell.get('execution_count'))

  @parameterized.parameters(_NOTEBOOKS)
  def test_names_the_kernel_of_any_machine(self, name):
    self.assertEqual(_read(name).metadata.kernelspec.name, 'python3')

  @parameterized.parameters(_NOTEBOOKS)
  def test_holds_no_absolute_paths(self, name):
    book = json.loads((_FOLDER / name).read_text())
    for cell in book['cells']:
      self.assertNotRegex(''.join(cell['source']), _ABSOLUTE_PATH)
    self.assertNotRegex(json.dumps(book['metadata']), _ABSOLUTE_PATH)

  @parameterized.parameters(_NOTEBOOKS)
  def test_begins_with_a_link_to_colab(self, name):
    self.assertIn(f'({_COLAB}{name})', _read(name).cells[0].source)


class FirstCodeTest(parameterized.TestCase):
  """What installs seekax where it isn't, without touching JAX."""

  def _run(self, name: str, is_installed: bool) -> list[list[str]]:
    """The commands that the first code of a notebook would run."""
    cell = next(x for x in _read(name).cells if x.cell_type == 'code')
    # A folder that is no checkout, nor below one.
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.enter_context(contextlib.chdir(folder))
    found = mock.sentinel.spec if is_installed else None
    with (
      mock.patch('importlib.util.find_spec', return_value=found),
      mock.patch.object(subprocess, 'run') as run,
    ):
      exec(compile(cell.source, name, 'exec'), {})
    return [[str(word) for word in call.args[0]] for call in run.mock_calls]

  @parameterized.parameters(_NOTEBOOKS)
  def test_does_nothing_where_seekax_is(self, name):
    self.assertEmpty(self._run(name, is_installed=True))

  @parameterized.parameters(_NOTEBOOKS)
  def test_installs_beside_the_jax_that_is_there(self, name):
    clone, package, others = self._run(name, is_installed=False)
    self.assertEqual(clone[:2], ['git', 'clone'])
    for command in (package, others):
      self.assertEqual(command[:4], [sys.executable, '-m', 'pip', 'install'])
    self.assertIn('--no-deps', package)
    # As a path: pip would look a bare name up in the index.
    self.assertEqual(package[-1], os.path.realpath(clone[-1]))
    of_jax = [word for word in others if word.startswith('jax')]
    present = [f'{x}=={metadata.version(x)}' for x in ('jax', 'jaxlib')]
    self.assertEqual(of_jax, present)
    self.assertTrue([word for word in others if word.startswith('flax')])
    self.assertNotRegex(' '.join(others), 'extra|cuda|ruff')

  @parameterized.parameters(_NOTEBOOKS)
  def test_says_what_is_wrong_with_an_older_jax(self, name):
    version = mock.patch('importlib.metadata.version', return_value='0.4.30')
    with version, self.assertRaisesRegex(RuntimeError, 'jax.*has 0.4.30'):
      self._run(name, is_installed=False)


if __name__ == '__main__':
  absltest.main()
