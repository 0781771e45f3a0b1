"""Laws of token folders: what was written is read, or the fault is named."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
from array_record.python import array_record_module
import numpy as np

from seekax.configuration.data import DataConfig
from seekax.data import contents, pipeline, shards, split, tokenizer_training
from seekax.data.reading_rules import DataError, Document
from seekax.data.shards import CorruptRecordError, TokenFolder

_DOCUMENTS = [
  Document(f'{n}', f'text {n} of é words ' * (1 + n % 7)) for n in range(40)
]


class FolderTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )
    self.tokenizer = tokenizer_training.train([d.text for d in _DOCUMENTS], 300)
    written = [
      shards.write_shard(
        self.folder, f'part-{n}', _DOCUMENTS[20 * n :][:20], self.tokenizer
      )
      for n in range(2)
    ]
    self.tokenizer.save(self.folder / shards.TOKENIZER)
    plan = {
      'tokenizer_sha256': shards.sha256_of(self.tokenizer),
      'bos': self.tokenizer.bos,
      'eos': self.tokenizer.eos,
    }
    shards.write_manifest(self.folder, plan, self.tokenizer, written)

  def open(self, **options) -> TokenFolder:
    return TokenFolder(str(self.folder), 'books/', **options)

  def flip(self, name: str, content: bytes) -> int:
    """Flips a bit of the record that has this content; returns its place."""
    path = self.folder / name
    data = bytearray(path.read_bytes())
    place = data.index(content) + 5
    data[place] ^= 4
    path.write_bytes(data)
    return place

  def edit_manifest(self, **changes) -> None:
    path = self.folder / 'manifest.json'
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | changes))


class RoundTripTest(FolderTestCase):
  def test_documents_come_back_in_order(self):
    folder = self.open()
    expected = contents.tokenize(_DOCUMENTS, self.tokenizer)
    self.assertEqual(folder.lengths.tolist(), [len(t) for t in expected])
    for number, tokens in enumerate(expected):
      read = folder.read(number)
      np.testing.assert_array_equal(read, tokens)
      self.assertEqual(read.dtype, np.int32)
    self.assertEqual(folder.name(23), 'books/part-1:3')
    self.assertEqual(
      folder.num_bytes.tolist(), [len(d.text.encode()) for d in _DOCUMENTS]
    )

  def test_keys_are_those_of_the_texts(self):
    np.testing.assert_array_equal(
      self.open().keys, split.content_keys(_DOCUMENTS)
    )

  def test_the_manifest_sums_up(self):
    manifest = shards.read_manifest(self.folder)
    folder = self.open()
    self.assertEqual(manifest['documents'], 40)
    self.assertEqual(manifest['tokens'], folder.lengths.sum())
    self.assertEqual(manifest['bytes'], folder.num_bytes.sum())

  @parameterized.parameters((65536, '<u2'), (65537, '<i4'))
  def test_ids_take_two_bytes_where_they_fit(self, vocab_size, expected):
    self.assertEqual(shards.dtype_for(vocab_size), expected)
    self.assertGreaterEqual(np.iinfo(expected).max, vocab_size - 1)

  def test_many_shards_are_read_with_few_open(self):
    folder = self.open()
    with mock.patch.object(shards, '_MAX_OPEN_SHARDS', 1):
      for number in (0, 25, 3, 39, 20, 19):
        self.assertLen(folder.read(number), folder.lengths[number])
        self.assertLen(folder._readers, 1)


class FaultTest(FolderTestCase):
  def record(self, number: int) -> bytes:
    return self.open().read(number).astype('<u2').tobytes()

  def test_a_corrupt_record_is_named_with_shard_and_position(self):
    self.flip('part-1.array_record', self.record(26))
    with self.assertRaisesRegex(
      CorruptRecordError,
      r'part-1\.array_record: record 6 is corrupt .*at byte \d+.*skip_corrupt',
    ):
      self.open()

  def test_one_that_turns_corrupt_later_is_named_too(self):
    folder = self.open()
    self.flip('part-1.array_record', self.record(26))
    with self.assertRaisesRegex(CorruptRecordError, 'record 6 is corrupt'):
      folder.read(26)

  def test_it_costs_no_other_record(self):
    expected = [self.open().read(n).tolist() for n in range(40)]
    self.flip('part-1.array_record', self.record(26))
    folder = self.open(skip_corrupt=True)
    for number in (*range(26), *range(27, 40)):
      self.assertEqual(folder.read(number).tolist(), expected[number])
    with self.assertRaises(CorruptRecordError):
      folder.read(26)

  @parameterized.parameters('part-0.array_record', 'part-0.npy')
  def test_a_missing_or_shorter_file_is_named(self, name):
    path = self.folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with self.assertRaisesRegex(DataError, f'{name} (has|does not match)'):
      self.open(skip_corrupt=True)
    path.unlink()
    with self.assertRaisesRegex(DataError, f'cannot read .*{name}'):
      self.open(skip_corrupt=True)

  def test_a_shard_of_other_documents_is_refused(self):
    others = [self.open().read(n)[::-1].astype('<u2') for n in range(20)]
    path = self.folder / 'part-0.array_record'
    writer = array_record_module.ArrayRecordWriter(
      str(path), shards._WRITER_OPTIONS
    )
    for tokens in others:
      writer.write(tokens.tobytes())
    writer.close()
    with self.assertRaisesRegex(DataError, 'array_record does not match its'):
      self.open(skip_corrupt=True)

  def test_another_tokenizer_beside_the_shards_is_refused(self):
    tokenizer_training.train(['x'], 300).save(self.folder / shards.TOKENIZER)
    with self.assertRaisesRegex(DataError, 'not the tokenizer that the shards'):
      self.open()

  def test_another_format_is_refused(self):
    self.edit_manifest(format='seekax tokens 99')
    with self.assertRaisesRegex(DataError, 'seekax tokens 99'):
      self.open()

  def test_a_manifest_without_shards_is_refused(self):
    path = self.folder / 'manifest.json'
    path.write_text(json.dumps({'format': shards.FORMAT}))
    with self.assertRaisesRegex(DataError, 'manifest.json lacks bos'):
      self.open()

  def test_a_hostile_manifest_is_refused(self):
    (entry, *rest) = shards.read_manifest(self.folder)['shards']
    for changes, words in (
      ({'dtype': 'O'}, 'the dtype is none of <u2, <i4'),
      ({'shards': [{**entry, 'name': '../part-0'}, *rest]}, 'is no name'),
      ({'shards': [{**entry, 'more': 1}, *rest]}, 'lists no shards as known'),
      ({'shards': [3]}, 'lists no shards as known'),
    ):
      path = self.folder / 'manifest.json'
      before = path.read_text()
      self.edit_manifest(**changes)
      with self.assertRaisesRegex(DataError, words):
        self.open()
      path.write_text(before)

  def test_ids_out_of_range_are_corrupt(self):
    folder = self.open()
    folder.tokenizer.vocab_size = 5
    with self.assertRaisesRegex(CorruptRecordError, 'an id is not below 5'):
      folder.read(0)


class SkipTest(FolderTestCase):
  def batches(self, skip_corrupt: bool) -> pipeline.BatchIterator:
    config = DataConfig(
      sequence_length=7, batch_size=4, num_shards=2, skip_corrupt=skip_corrupt
    )
    ingredients = [pipeline.Ingredient(1.0, self.folder_of_run)]
    return pipeline.mixed_batches(
      ingredients, config, lambda tokens, *_: tokens
    )

  def test_training_skips_and_counts_through_a_resume(self):
    self.folder_of_run = self.open()
    record = self.folder_of_run.read(26)
    self.flip('part-1.array_record', record.astype('<u2').tobytes())
    with self.assertRaisesRegex(CorruptRecordError, 'record 6 is corrupt'):
      iterator = self.batches(False)
      for _ in range(60):
        next(iterator)
    iterator = self.batches(True)
    with self.assertLogs('seekax.data.packing', 'WARNING') as logs:
      for _ in range(60):
        next(iterator)
    self.assertGreater(iterator.skipped(), 1)  # Once an epoch.
    self.assertLen(logs.output, iterator.skipped())
    other = self.batches(True)
    other.set_state(json.loads(json.dumps(iterator.get_state())))
    self.assertEqual(other.skipped(), iterator.skipped())
    np.testing.assert_array_equal(
      next(other).tokens_BL, next(iterator).tokens_BL
    )


if __name__ == '__main__':
  absltest.main()
