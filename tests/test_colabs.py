"""Every notebook runs from a clean kernel, in its smoke form, and stays short."""

import json
import os
import pathlib
import re
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

_NOTEBOOKS = [(path.name,) for path in sorted(_FOLDER.glob('*.ipynb'))]


def _read(name: str) -> nbformat.NotebookNode:
  return nbformat.read(_FOLDER / name, as_version=4)


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


if __name__ == '__main__':
  absltest.main()
