import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from absl.testing import absltest

from seekax.storage.manifest import StorageError
from seekax.storage.rows import cut_back, read_rows

ROWS: list[dict[str, Any]] = [
  {'kind': 'train', 'step': 1, 'loss': 5.0},
  {'kind': 'train', 'step': 2, 'loss': None},
  {'kind': 'eval', 'step': 2, 'heldout_bits_per_byte': 2.5},
  {'kind': 'sample', 'step': 3, 'prompt': 'é\n', 'text': '\u2028x'},
]


class RowsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = folder / 'metrics.jsonl'
    self.text = ''.join(json.dumps(row) + '\n' for row in ROWS)
    self.path.write_text(self.text, encoding='utf-8')

  def test_rows_come_back_in_order(self):
    self.assertEqual(read_rows(self.path), ROWS)

  def test_a_cut_short_last_line_is_dropped_wherever_it_is_cut(self):
    whole, last = self.text.splitlines()[:-1], self.text.splitlines()[-1]
    for end in range(1, len(last)):
      self.path.write_text('\n'.join([*whole, last[:end]]))
      self.assertEqual(read_rows(self.path), ROWS[:-1], msg=last[:end])

  def test_no_file_and_an_empty_file_have_no_rows(self):
    self.path.write_text('')
    self.assertEqual(read_rows(self.path), [])
    self.path.unlink()
    self.assertEqual(read_rows(self.path), [])

  def test_cut_back_keeps_rows_up_to_the_step(self):
    for step in (0, 1, 2, 3, 9):
      self.path.write_text(self.text)
      cut_back(self.path, step)
      kept = [row for row in ROWS if row['step'] <= step]
      self.assertEqual(read_rows(self.path), kept)

  def test_cut_back_to_the_end_changes_no_whole_file(self):
    cut_back(self.path, 3)
    self.assertEqual(self.path.read_text(), self.text)

  def test_cut_back_leaves_a_file_that_can_be_appended_to(self):
    self.path.write_text(self.text + '{"kind": "tra')
    cut_back(self.path, 2)
    with open(self.path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(ROWS[3]) + '\n')
    self.assertEqual(read_rows(self.path), ROWS)

  def test_jax_is_not_imported(self):
    code = (
      'import sys; import seekax.storage.rows; sys.exit("jax" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', code], check=False)
    self.assertEqual(done.returncode, 0)

  def test_gigabytes_of_holes_and_what_is_no_file_are_refused_at_once(self):
    with open(self.path, 'wb') as file:
      file.truncate(200_000_000)
    with self.assertRaisesRegex(StorageError, r':1 is longer than'):
      read_rows(self.path)
    os.truncate(self.path, 5_000_000_000)
    with self.assertRaisesRegex(StorageError, 'a metrics file may have'):
      read_rows(self.path)
    self.path.unlink()
    os.mkfifo(self.path)
    with self.assertRaisesRegex(StorageError, 'a pipe, not a file'):
      read_rows(self.path)

  def test_a_row_that_is_no_object_is_named(self):
    for row in ('[1]', '3', '"x"', '[' * 100_000):
      self.path.write_text(f'{{"step": 1}}\n{row}\n{{"step": 2}}\n')
      with self.assertRaisesRegex(StorageError, ':2 is no JSON object'):
        read_rows(self.path)


if __name__ == '__main__':
  absltest.main()
