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

import runs
from seekax.cli import main as main_lib
from seekax.data import shards
from seekax.data import tokenizer as tokenizer_lib


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
    tokenizer_lib.train(texts, 300).save(cls.root / 'tokenizer.json')

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
    run = runs.seekax('tokenize', *self.arguments('quiet'))
    self.assertEqual((run.returncode, run.stderr), (0, ''))
    self.assertEqual(run.stdout, f'{self.root / "quiet"}\n')
    folder = shards.TokenFolder(str(self.root / 'quiet'), '')
    self.assertLen(folder.lengths, 30)
    again = runs.seekax('tokenize', *self.arguments('quiet'))
    self.assertEqual(again.returncode, 0)
    self.assertIn('is complete already', again.stderr)

  def test_a_terminal_sees_one_line_of_progress(self):
    ours, theirs = pty.openpty()
    run = subprocess.run(
      runs.command('tokenize', *self.arguments('loud')),
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

  def test_bad_input_is_one_line_and_exit_code_2(self):
    for changes, words in (
      ({'source': ''}, '--source= is missing'),
      ({'source': 'nowhere'}, "'nowhere' does not exist"),
      ({'tokenizer': ''}, '--tokenizer= is missing'),
      ({'tokenizer': self.root / 'a.jsonl'}, 'not a tokenizer.json'),
      ({'target': str(self.root)}, 'neither empty nor a begun folder'),
      ({'shard_documents': 0}, 'must be above 0'),
      ({'workers': -1}, 'must not be negative'),
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
