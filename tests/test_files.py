"""Laws of foreign files and words: bounded, and shown without their tricks."""

import errno
import json
import os
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized

from seekax import files
from seekax.configuration.errors import InputError
from seekax.configuration.presets import v3_671b
from seekax.storage import names, safetensors_header

TRICKS = 'a\x1b[2J\r\n\x00\u202e\ud800b'


class WordsTest(parameterized.TestCase):
  @parameterized.parameters(files.printable, files.quoted, files.one_line)
  def test_no_control_character_gets_through(self, function):
    self.assertTrue(function(TRICKS).isprintable())
    self.assertIn('x1b[2J', function(TRICKS))

  def test_long_words_are_cut(self):
    self.assertEqual(files.quoted('x' * 5000), repr('x' * 80) + '...')
    self.assertLess(len(files.quoted(['x' * 5000])), 100)
    self.assertLess(len(files.quoted(10**5000)), 100)

  def test_a_long_message_keeps_its_beginning_and_its_advice(self):
    line = files.one_line('what ' + 'x' * 5000 + ' delete it')
    self.assertLess(len(line), 500)
    self.assertStartsWith(line, 'what xx')
    self.assertEndsWith(line, 'xx delete it')

  def test_an_error_without_words_has_a_name(self):
    self.assertEqual(files.reason(OSError()), 'OSError')
    self.assertEqual(files.reason(ValueError(' ')), 'ValueError')
    self.assertIn('ulimit -n', files.reason(OSError(errno.EMFILE, 'x')))


class ReadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'file'

  def test_a_file_is_read_whole(self):
    self.path.write_bytes(b'x' * 4_000_000)
    found = files.read_bounded(self.path, 'config.json')
    self.assertLen(found, 4_000_000)

  def test_above_its_limit_it_is_refused_with_the_way_to_raise_it(self):
    os.close(os.open(self.path, os.O_CREAT))
    os.truncate(self.path, 4_000_001)
    with self.assertRaisesRegex(InputError, 'SEEKAX_LIMIT_FACTOR=10 allows'):
      files.read_bounded(self.path, 'config.json')
    with mock.patch.dict(os.environ, {files.LIMIT_FACTOR: '10'}):
      files.read_bounded(self.path, 'config.json')
    for text in ('0', 'x', 'inf', 'nan', '-1'):
      with (
        mock.patch.dict(os.environ, {files.LIMIT_FACTOR: text}),
        self.assertRaisesRegex(InputError, 'no number from 1 on'),
      ):
        files.read_bounded(self.path, 'config.json')

  def test_what_is_no_file_is_refused_at_once(self):
    os.mkfifo(self.path)
    loop = self.path.with_name('loop')
    loop.symlink_to('loop')
    for path, words in (
      (self.path, 'a pipe, not a file'),
      (self.path.parent, 'a folder, not a file'),
      ('/dev/zero', 'a device, not a file'),
      (loop, 'a link to itself'),
      (self.path / 'x', 'Not a directory'),
      ('a\0b', 'null'),
    ):
      with self.assertRaisesRegex(InputError, words):
        files.read_bounded(path, 'config.json')


class JsonTest(parameterized.TestCase):
  @parameterized.parameters('[],', '{},', '0,', '{"a":1},')
  def test_json_of_too_many_parts_is_refused_before_it_takes_memory(self, part):
    text = b'[' + part.encode() * 3_000_001 + b'0]'
    with self.assertRaisesRegex(InputError, 'parts, more than 3,000,000'):
      files.parse_json('x', text)

  def test_the_largest_releases_are_below_the_limits(self):
    # As one single file; an index has a third of that.
    entries = [
      safetensors_header.Entry(name, 'F32', slot.shape)
      for slot in names.slots(v3_671b())
      for name in (slot.name, f'{slot.name}_scale_inv')
    ]
    # Kimi-K2 has 139,000 tensors, V3 92,000.
    text = safetensors_header.header(entries, {})[8:]
    scale = 139_000 / len(entries)
    limit = files.LIMITS['a safetensors header']
    self.assertLess(len(text) * scale, limit)
    self.assertGreater(len(text) * scale, limit / 3)
    parts = sum(text.count(mark) for mark in (b'[', b'{', b','))
    self.assertLess(parts * scale, 3_000_000 / 2)
    self.assertLen(files.parse_json('x', text), len(entries) + 1)

  @parameterized.parameters(
    ('{"a": 1, "\\u001b": 1, "\\u001b": 2}', r"lists '.x1b' twice"),
    ('[' * 100_000, 'too deep'),
    ('{', 'no valid JSON'),
    ('9' * 5000, 'no valid JSON'),
  )
  def test_broken_json_is_refused_in_a_line(self, text, words):
    with self.assertRaisesRegex(InputError, words) as caught:
      files.parse_json('x', text.encode())
    self.assertLess(len(str(caught.exception)), 500)
    self.assertTrue(str(caught.exception).isprintable())

  def test_what_is_no_utf8_is_refused(self):
    with self.assertRaisesRegex(InputError, 'no valid JSON'):
      files.parse_json(
        'x', json.dumps('é', ensure_ascii=False).encode('latin1')
      )


if __name__ == '__main__':
  absltest.main()
