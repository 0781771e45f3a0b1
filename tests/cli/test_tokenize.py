"""`seekax tokenize` as a user types it."""

import io
import json
import os
import pathlib
import pty
import subprocess
import tempfile
from unittest import mock

from absl.testing import absltest

from seekax.cli import main as main_lib
from seekax.data import shards, tokenizer_training
import short_runs


class TokenizeTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    texts = [f'def f{n}(x):\n  return x + {n}\n' for n in range(30)]
    lines = [json.dumps({'text': text}) for text in texts]
    (cls.root / 'a.jsonl').write_text('\n'.join(lines))
    tokenizer_training.train(texts, 300).save(cls.root / 'tokenizer.json')

  def arguments(self, target_name: str, **changes) -> list[str]:
    values = {
      'source': self.root / 'a.jsonl',
      'tokenizer': self.root / 'tokenizer.json',
      'target': self.root / target_name,
      'workers': 1,
      'shard_documents': 7,
    }
    return [f'--{k}={v}' for k, v in (values | changes).items()]

  def test_it_writes_a_folder_and_is_quiet_in_a_pipe(self):
    run = short_runs.seekax('tokenize', *self.arguments('quiet'))
    self.assertEqual((run.returncode, run.stderr), (0, ''))
    self.assertEqual(run.stdout, f'{self.root / "quiet"}\n')
    folder = shards.TokenFolder(str(self.root / 'quiet'), '')
    self.assertLen(folder.lengths, 30)
    again = short_runs.seekax('tokenize', *self.arguments('quiet'))
    self.assertEqual(again.returncode, 0)
    self.assertIn('is complete already', again.stderr)

  def test_a_terminal_sees_one_line_of_progress(self):
    ours, theirs = pty.openpty()
    run = subprocess.run(
      short_runs.command('tokenize', *self.arguments('loud')),
      stdout=subprocess.DEVNULL,
      stderr=theirs,
      check=False,
    )
    self.assertEqual(run.returncode, 0)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    self.assertEqual(shown.count('\n'), 1)
    self.assertRegex(shown, r'\r5 shards, 30 documents, 0\.0 MB of text, ')

  def test_the_cores_are_found_where_the_system_does_not_tell(self):
    with (
      mock.patch.object(os, 'sched_getaffinity', create=True),
      mock.patch('sys.stdout', new_callable=io.StringIO),
    ):
      del os.sched_getaffinity  # As on macOS.
      code = main_lib.main(['tokenize', *self.arguments('mac', workers=0)])
    self.assertEqual(code, 0)

  def test_flags_say_how_files_are_read(self):
    folder = self.root / 'folder'
    folder.mkdir()
    (folder / 'a.jsonl').write_text('{"body": "one"}\n{"body": "two"}')
    (folder / 'b.txt').write_text('three')
    (folder / 'c.md').write_text('four')
    for target, changes, documents in (
      ('flags1', {'text_field': 'body', 'exclude': '*.md'}, 3),
      ('flags2', {'include': '*.txt,*.md'}, 2),
    ):
      with mock.patch('sys.stdout', new_callable=io.StringIO):
        arguments = self.arguments(target, source=folder, **changes)
        self.assertEqual(main_lib.main(['tokenize', *arguments]), 0)
      written = shards.TokenFolder(str(self.root / target), '')
      self.assertLen(written.lengths, documents)

  def test_bad_input_is_one_line_and_exit_code_2(self):
    for changes, words in (
      ({'source': ''}, '--source= is missing'),
      ({'source': 'nowhere'}, "nowhere' does not exist"),
      ({'tokenizer': ''}, '--tokenizer= is missing'),
      ({'tokenizer': self.root / 'a.jsonl'}, 'not a tokenizer.json'),
      ({'target': str(self.root)}, 'neither empty nor a begun folder'),
      ({'shard_documents': 0}, 'must be above 0'),
      ({'workers': -1}, 'must not be negative'),
      ({'text_field': 'body'}, '--text_field'),
      ({'max_document_bytes': 9}, 'raise --max_document_bytes'),
      ({'max_document_bytes': 0}, 'must be above 0'),
      ({'include': '*.md'}, 'holds no text'),
      ({'source': '/dev/zero'}, 'is not a regular file'),
      ({'tokenizer': '/dev/zero'}, 'is not a file'),
    ):
      with (
        self.subTest(words),
        mock.patch('sys.stderr', new_callable=io.StringIO) as errors,
      ):
        code = main_lib.main(['tokenize', *self.arguments('bad', **changes)])
        self.assertEqual(code, 2)
        self.assertIn(words, errors.getvalue())
        self.assertEqual(errors.getvalue().count('\n'), 1)


if __name__ == '__main__':
  absltest.main()
