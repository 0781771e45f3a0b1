"""Documents say what was recorded, and of one run."""

import json

from absl.testing import absltest
from PIL import Image

import record_demo
import short_runs


class DemoTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.record = json.loads(record_demo.RECORD.read_text())

  def test_the_picture_is_of_the_recorded_run(self):
    with Image.open(record_demo.PICTURE) as image:
      carried = json.loads(image.info[record_demo.KEY])
    self.assertEqual(carried, self.record)

  def test_readme_and_config_name_its_figures(self):
    found = self.record
    bits = [
      found[f'{kind}_bits_per_byte'] for kind in ('heldout', 'gzip', 'xz')
    ]
    common = [
      f'{found["steps"]} steps',
      f'{found["tokens_per_second"]:,.0f} tokens/s',
      f'{found["train_seconds"]:.0f} s',
      f'{found["compile_seconds"]:.1f} s of compilation',
      f'{found["peak_memory_bytes"] / 2**30:.2f} GiB',
      f'{100 * found["mtp_acceptance"]:.1f} %',
      f'{found["heldout_documents"]} held-out',
    ]
    for path, digits in (('README.md', 3), ('configs/demo.py', 4)):
      text = ' '.join((short_runs.ROOT / path).read_text().split())
      for words in [*common, *(f'{x:.{digits}f}' for x in bits)]:
        self.assertIn(words, text, msg=path)

  def test_readme_shows_what_the_model_wrote(self):
    # The first prompt's; each begins with a line that quotes the prompt.
    _, first, *_ = record_demo.SAMPLE.read_text().split('>>> ')
    prompt, text = first.split('\n', 1)
    self.assertEqual(prompt, "'def main('")
    readme = (short_runs.ROOT / 'README.md').read_text()
    self.assertIn(f'```text\n{text.strip()}\n```', readme)


if __name__ == '__main__':
  absltest.main()
