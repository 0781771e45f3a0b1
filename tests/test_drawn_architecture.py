"""The picture of the architecture is what its script draws."""

import pathlib
import subprocess
import sys
import tempfile
from xml.etree import ElementTree

from absl.testing import absltest, parameterized

import short_runs

_DOCS = short_runs.ROOT / 'docs'


class DrawnArchitectureTest(parameterized.TestCase):
  def _draw(self, *flags: str) -> str:
    folder = self.enter_context(tempfile.TemporaryDirectory())
    target = pathlib.Path(folder, 'drawn.svg')
    script = str(_DOCS / 'draw_architecture.py')
    command = [sys.executable, script, f'--target={target}', *flags]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return target.read_text()

  def test_the_committed_picture_is_the_one_drawn(self):
    self.assertEqual(self._draw(), (_DOCS / 'architecture.svg').read_text())

  @parameterized.parameters(
    ('demo', ('4 of 16 experts', 'latent 48 + rotary 16', 'prediction')),
    ('v2_lite', ('6 of 64 experts', 'no query latent', '2 shared')),
  )
  def test_sizes_are_those_of_the_config(self, config, words):
    text = self._draw(f'--config={config}')
    for word in words:
      self.assertIn(word, text)

  def test_there_is_a_square_for_every_expert(self):
    picture = ElementTree.fromstring(self._draw())
    kinds = [x.get('class') for x in picture.iter() if x.get('rx') == '1']
    self.assertLen(kinds, 256)
    self.assertEqual(kinds.count('ink-moe'), 8)


if __name__ == '__main__':
  absltest.main()
