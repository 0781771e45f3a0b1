"""Laws of tokenizing: one result, whatever the processes and interruptions."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from seekax.data import (
  reading_rules,
  shard_writer,
  shards,
  sources,
  tokenizer_training,
)
from seekax.data.reading_rules import DataError, Document

_TEXTS = [f'def f{n}(x):\n  return x + {n * n}\n' * 5 for n in range(90)]


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


class WriterTestCase(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    cls.source = cls.root / 'a.jsonl'
    lines = [json.dumps({'text': text}) for text in _TEXTS]
    cls.source.write_text('\n'.join(lines))
    cls.tokenizer = cls.root / 'tokenizer.json'
    tokenizer_training.train(_TEXTS, 300).save(cls.tokenizer)
    cls.whole = cls.root / 'whole'
    cls.tokenize(cls.whole)

  @classmethod
  def tokenize(cls, target, **changes) -> bool:
    arguments = {
      'source': str(cls.source),
      'tokenizer_path': str(cls.tokenizer),
      'target': str(target),
      'workers': 1,
      'shard_documents': 20,
    }
    return shard_writer.tokenize(**(arguments | changes))

  def fresh(self) -> pathlib.Path:
    return pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()), 't')


class ResultTest(WriterTestCase):
  def test_the_folder_holds_every_document_in_order(self):
    folder = shards.TokenFolder(str(self.whole), '')
    texts = [
      folder.tokenizer.decode(folder.read(n)[1:-1])
      for n in range(len(folder.lengths))
    ]
    self.assertEqual(texts, _TEXTS)
    names = {path.name for path in self.whole.iterdir()}
    self.assertLen(names, 2 * 5 + 2)
    self.assertContainsSubset({'manifest.json', 'tokenizer.json'}, names)

  def test_the_number_of_processes_changes_no_byte(self):
    target = self.fresh()
    self.assertTrue(self.tokenize(target, workers=2))
    self.assertEqual(files_of(target), files_of(self.whole))

  def test_a_finished_folder_is_left_alone(self):
    before = {p: p.stat().st_mtime_ns for p in self.whole.iterdir()}
    self.assertFalse(self.tokenize(self.whole))
    self.assertEqual(
      {p: p.stat().st_mtime_ns for p in self.whole.iterdir()}, before
    )

  def test_what_a_kill_after_the_manifest_leaves_is_cleared_away(self):
    target = self.fresh()
    self.tokenize(target)
    (target / 'part-000000.done').write_text('{}')
    (target / 'plan.json').write_text('{}')
    self.assertFalse(self.tokenize(target))
    self.assertEqual(files_of(target), files_of(self.whole))

  def test_progress_counts_up_to_everything(self):
    seen = []
    self.tokenize(self.fresh(), report=seen.append)
    self.assertEqual(seen[-1].shards, 5)
    self.assertEqual(seen[-1].documents, 90)
    self.assertEqual(seen[-1].bytes, sum(map(len, _TEXTS)))
    self.assertEqual(seen[-1].fresh_bytes, seen[-1].bytes)

  def test_long_documents_end_a_shard_early(self):
    documents = [Document(f'{n}', 'x' * 100) for n in range(10)]
    with mock.patch.object(shard_writer, '_SHARD_BYTES', 250):
      batches = shard_writer._batches(documents, 1000)
      self.assertEqual([len(batch) for batch in batches], [3, 3, 3, 1])

  def test_a_folder_is_tokenized_like_its_files(self):
    folder = self.fresh()
    folder.mkdir()
    for n, text in enumerate(_TEXTS[:9]):
      (folder / f'{n}.py').write_text(text)
    target = self.fresh()
    self.tokenize(target, source=f'{folder},{self.source}')
    read = shards.TokenFolder(str(target), '')
    self.assertLen(read.lengths, 99)
    np.testing.assert_array_equal(read.read(3), read.read(9 + 3))


class SourceTest(WriterTestCase):
  def folder_of_text(self) -> pathlib.Path:
    folder = self.fresh()
    folder.mkdir()
    for n, text in enumerate(_TEXTS[:9]):
      (folder / f'{n}.py').write_text(text)
    return folder

  def documents(self, target: pathlib.Path) -> int:
    return len(shards.TokenFolder(str(target), '').lengths)

  def test_target_and_tokenizer_inside_the_source_are_no_text(self):
    folder = self.folder_of_text()
    tokenizer = folder / 'tokenizer.json'
    tokenizer.write_bytes(self.tokenizer.read_bytes())
    call = {'source': str(folder), 'tokenizer_path': str(tokenizer)}
    target = folder / 'tokens'
    self.assertTrue(self.tokenize(target, **call))
    self.assertEqual(self.documents(target), 9)
    self.assertFalse(self.tokenize(target, **call))
    (target / 'manifest.json').rename(target / 'plan.json')  # Unfinished.
    self.assertTrue(self.tokenize(target, **call))
    self.assertEqual(self.documents(target), 9)
    self.assertTrue(self.tokenize(folder / 'more', **call))
    self.assertEqual(self.documents(folder / 'more'), 9)

  def test_what_is_no_text_is_left_out_until_nothing_is_left(self):
    folder = self.folder_of_text()
    (folder / 'image.png').write_bytes(b'\x89PNG')
    os.mkfifo(folder / 'pipe')
    target = self.fresh()
    with self.assertLogs(level='WARNING') as logs:
      self.tokenize(target, source=str(folder))
    self.assertIn('not text (2)', logs.output[0])
    self.assertEqual(self.documents(target), 9)
    with self.assertRaisesRegex(DataError, 'image.png is not UTF-8 at byte 0'):
      self.tokenize(self.fresh(), source=str(folder / 'image.png'))

  def test_a_file_that_is_too_long_is_refused_before_it_is_hashed(self):
    path = self.root / 'sparse.txt'
    with path.open('wb') as file:
      file.truncate(4 << 30)
    with (
      mock.patch.object(shards, 'file_sha256', side_effect=self.fail),
      self.assertRaisesRegex(DataError, 'is longer than 268435456 bytes'),
    ):
      self.tokenize(self.fresh(), source=str(path))

  def test_rules_are_part_of_what_a_target_was_begun_with(self):
    folder, target = self.folder_of_text(), self.fresh()
    rules = reading_rules.Rules(exclude='1.py,2.py')
    self.tokenize(target, source=str(folder), rules=rules)
    self.assertEqual(self.documents(target), 7)
    with self.assertRaisesRegex(DataError, 'begun with another source'):
      self.tokenize(target, source=str(folder))
    with self.assertRaisesRegex(DataError, 'begun with another text_field'):
      other = dataclasses.replace(rules, text_field='body')
      self.tokenize(target, source=str(folder), rules=other)

  def test_conversations_get_the_control_tokens_of_the_template_alone(self):
    folder = self.fresh()
    folder.mkdir()
    text = self.tokenizer.read_text()
    (folder / 'tokenizer.json').write_text(text)
    (folder / 'chat_template.jinja').write_text(
      '{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}'
      '{% endfor %}'
    )
    talk = [
      {'role': 'user', 'content': 'def <|eos|>'},
      {'role': 'assistant', 'content': 'return'},
    ]
    source = folder / 'a.jsonl'
    source.write_text(json.dumps({'messages': talk}) + '\n{"text": "def"}')
    target = self.fresh()
    with self.assertLogs(level='WARNING') as logs:
      self.tokenize(target, source=str(source), tokenizer_path=str(folder))
    self.assertIn(
      "1 rows hold 'messages'; they are rendered by", logs.output[0]
    )
    read = shards.TokenFolder(str(target), '')
    encode, eos = read.tokenizer.encode, read.tokenizer.eos_id
    np.testing.assert_array_equal(
      read.read(0),
      [0, *encode('def <|eos|>'), eos, *encode('return'), eos],
    )
    np.testing.assert_array_equal(read.read(1), [0, *encode('def'), eos])
    (folder / 'chat_template.jinja').write_text('{{ messages[0].content }}')
    with self.assertRaisesRegex(DataError, 'with another chat_template'):
      self.tokenize(target, source=str(source), tokenizer_path=str(folder))


class InterruptionTest(WriterTestCase):
  def test_a_shard_that_is_missing_or_torn_is_written_again(self):
    target = self.fresh()
    target.mkdir()
    plan = json.loads((self.whole / 'manifest.json').read_text())
    keys = ('source', 'source_sha256', 'tokenizer_sha256', 'bos', 'eos')
    plan = {key: plan[key] for key in (*keys, 'shard_documents')}
    (target / 'plan.json').write_text(json.dumps(plan))
    manifest = shards.read_manifest(self.whole)
    for entry in manifest['shards'][:3]:
      for path in shards.Shard(**entry).paths(self.whole):
        (target / path.name).write_bytes(path.read_bytes())
      (target / f'{entry["name"]}.done').write_text(json.dumps(entry))
    torn = target / 'part-000001.array_record'
    torn.write_bytes(torn.read_bytes()[:1000])
    (target / '.part-000003.tmp').write_bytes(b'half a shard')
    kept = (target / 'part-000000.array_record').stat().st_mtime_ns
    seen = []
    self.tokenize(target, report=seen.append)
    self.assertEqual(files_of(target), files_of(self.whole))
    self.assertLess(seen[-1].fresh_bytes, seen[-1].bytes)
    self.assertEqual(
      (target / 'part-000000.array_record').stat().st_mtime_ns, kept
    )

  def test_after_kill_the_same_call_goes_on_to_the_same_bytes(self):
    target = self.fresh()
    code = (
      'import sys; from seekax.data import shard_writer as w\n'
      'def report(p):\n'
      '  print(p.shards, flush=True)\n'
      '  if p.shards == 2: input()\n'  # The parent kills it here.
      'if __name__ == "__main__": w.tokenize(*sys.argv[1:4], 1, 20, report)'
    )
    script = self.root / 'script.py'
    script.write_text(code)
    process = subprocess.Popen(
      [
        sys.executable,
        str(script),
        str(self.source),
        str(self.tokenizer),
        str(target),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert process.stdout
    with process:
      self.assertEqual([process.stdout.readline() for _ in range(2)][1], '2\n')
      worker = children_of(process.pid)
      self.assertNotEmpty(worker)
      process.kill()
    self.assertFalse((target / 'manifest.json').exists())
    self.assertTrue((target / 'part-000001.done').exists())
    # Its workers end too, or they would write beside those of the next call.
    deadline = time.monotonic() + 10
    while any(map(is_alive, worker)) and time.monotonic() < deadline:
      time.sleep(0.02)
    self.assertEmpty([pid for pid in worker if is_alive(pid)])
    with self.assertRaisesRegex(DataError, 'the same command again'):
      sources.is_tokens(str(target))
    self.tokenize(target)
    self.assertEqual(files_of(target), files_of(self.whole))

  def test_a_killed_worker_is_an_error_within_seconds(self):
    target = self.fresh()
    start = []

    def kill_workers(progress):
      if not start:
        start.append(time.monotonic())
        for pid in children_of(os.getpid()):
          if 'spawn_main' in command_of(pid):
            os.kill(pid, signal.SIGKILL)

    with self.assertRaisesRegex(DataError, 'a worker process was killed'):
      self.tokenize(target, report=kill_workers)
    self.assertLess(time.monotonic() - start[0], 5)
    # As a worker leaves it that is killed between writing and renaming.
    (target / 'part-000001.done.tmp-123').write_text('{')
    self.tokenize(target)
    self.assertEqual(files_of(target), files_of(self.whole))


class RefusalTest(WriterTestCase):
  def test_a_missing_source_or_tokenizer_is_named(self):
    with self.assertRaisesRegex(DataError, "'nowhere' does not exist"):
      self.tokenize(self.fresh(), source='nowhere')
    with self.assertRaisesRegex(DataError, 'cannot read tokenizer nowhere'):
      self.tokenize(self.fresh(), tokenizer_path='nowhere')

  def test_a_source_without_text_leaves_no_folder_of_tokens(self):
    empty = self.root / 'empty.jsonl'
    empty.write_text('\n')
    target = self.fresh()
    with self.assertRaisesRegex(DataError, 'holds no text'):
      self.tokenize(target, source=str(empty))
    self.assertFalse(sources.is_tokens(str(target)))

  def test_after_a_source_without_text_the_target_can_be_used(self):
    empty, target = self.root / 'blank.jsonl', self.fresh()
    empty.write_text('\n')
    with self.assertRaisesRegex(DataError, 'holds no text'):
      self.tokenize(target, source=str(empty))
    self.assertTrue(self.tokenize(target))
    self.assertEqual(files_of(target), files_of(self.whole))

  def test_a_plan_of_something_else_is_not_taken_over(self):
    target = self.fresh()
    target.mkdir()
    (target / 'plan.json').write_text('{"mine": 1}')
    with self.assertRaisesRegex(DataError, 'begun with another source'):
      self.tokenize(target)

  def test_weights_and_tokens_are_no_source(self):
    with self.assertRaisesRegex(DataError, 'has weights; tokenize each'):
      self.tokenize(self.fresh(), source=f'1*{self.source}')
    with self.assertRaisesRegex(DataError, 'is a folder of tokens already'):
      self.tokenize(self.fresh(), source=str(self.whole))

  def test_the_target_of_another_source_is_refused_and_kept(self):
    other = self.root / 'other.jsonl'
    other.write_text('{"text": "other"}')
    tokenizer = self.root / 'other_tokenizer.json'
    tokenizer_training.train(_TEXTS, 290).save(tokenizer)
    before = files_of(self.whole)
    for what, changes in (
      ('source', {'source': str(other)}),
      ('tokenizer', {'tokenizer_path': str(tokenizer)}),
      ('shard_documents', {'shard_documents': 30}),
    ):
      with self.assertRaisesRegex(DataError, f'begun with another {what};'):
        self.tokenize(self.whole, **changes)
    self.assertEqual(files_of(self.whole), before)

  def test_hidden_files_that_were_there_stay(self):
    target = self.fresh()
    target.mkdir()
    (target / '.part-mine').write_text('mine')
    self.tokenize(target)
    self.assertEqual((target / '.part-mine').read_text(), 'mine')

  def test_a_folder_of_other_things_is_refused(self):
    with self.assertRaisesRegex(DataError, 'neither empty nor a begun folder'):
      self.tokenize(self.root)
    with self.assertRaisesRegex(DataError, 'is not a folder'):
      self.tokenize(self.source)

  def test_two_calls_on_one_target_do_not_mix(self):
    target = self.fresh()
    target.mkdir()
    with (
      shard_writer._locked(target),
      self.assertRaisesRegex(DataError, 'being written by another process'),
    ):
      self.tokenize(target)


def children_of(pid: int) -> list[int]:
  text = pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text()
  return [int(child) for child in text.split()]


def command_of(pid: int) -> str:
  return pathlib.Path(f'/proc/{pid}/cmdline').read_text()


def is_alive(pid: int) -> bool:
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return stat.rpartition(')')[2].split()[0] != 'Z'


if __name__ == '__main__':
  absltest.main()
