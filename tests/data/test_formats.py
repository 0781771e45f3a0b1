"""Laws of the formats: what a file holds, and every bad one."""

import gzip
import importlib.util
import json
import pathlib
import sys
import tempfile
import tracemalloc
from typing import Any
from unittest import mock

from absl.testing import absltest, parameterized

from seekax.data import formats, reading_rules
from seekax.data.reading_rules import DataError, Document

_HAS_PYARROW = importlib.util.find_spec('pyarrow') is not None
_LINES = b'{"text": "one"}\n\n{"text": ""}\n{"text": "two\xe2\x80\xa8x"}'


class FormatsTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )

  def write(self, name: str, content: bytes) -> pathlib.Path:
    path = self.folder / name
    path.write_bytes(content)
    return path

  def read(self, path: pathlib.Path, **rules) -> list[Document]:
    return list(formats.read_file(path, 'name', reading_rules.Rules(**rules)))


class LinesTest(FormatsTestCase):
  def test_gzipped_lines_are_read_as_plain_ones(self):
    plain = self.read(self.write('a.jsonl', _LINES))
    self.assertEqual(
      plain, [Document('name:1', 'one'), Document('name:4', 'two\u2028x')]
    )
    packed = self.write('a.jsonl.gz', gzip.compress(_LINES))
    self.assertEqual(self.read(packed), plain)

  def test_other_gzipped_files_are_not_text(self):
    with self.assertRaisesRegex(
      reading_rules.NotUtf8Error, 'a.gz is not UTF-8'
    ):
      self.read(self.write('a.gz', gzip.compress(_LINES)))

  @parameterized.parameters(
    (b'no gzip at all',),
    (gzip.compress(_LINES)[:-12],),
    (gzip.compress(_LINES)[:12] + b'\xff' * 40,),
  )
  def test_a_broken_gzip_file_is_named(self, content):
    path = self.write('a.jsonl.gz', content)
    with self.assertRaisesRegex(DataError, 'a.jsonl.gz is no whole gzip file'):
      self.read(path)

  def test_a_bad_byte_is_counted_from_the_start_of_the_file(self):
    path = self.write('a.jsonl', b'{"text": "one"}\n{"text": "\xff"}')
    with self.assertRaisesRegex(DataError, 'is not UTF-8 at byte 26;'):
      self.read(path)

  def test_a_stream_of_lines_is_not_held_in_memory(self):
    path = self.write('a.jsonl', _LINES[:16] + b'{broken')
    stream = formats.read_file(path, 'name')
    self.assertEqual(next(stream).text, 'one')
    with self.assertRaisesRegex(DataError, 'a.jsonl:2 is not JSON'):
      next(stream)

  def test_a_lone_shard_is_refused_with_the_way_to_give_it(self):
    path = self.write('part-0.array_record', b'x')
    with self.assertRaisesRegex(DataError, 'give the folder that seekax'):
      self.read(path)


class OddFilesTest(FormatsTestCase):
  @parameterized.parameters(
    'a.JSONL', 'a.ndjson', 'a.NDJson', 'a.jsonl.GZ', 'a.Ndjson.gz'
  )
  def test_json_lines_are_known_in_any_letter_case(self, name):
    packed = name.lower().endswith('.gz')
    content = gzip.compress(_LINES) if packed else _LINES
    documents = self.read(self.write(name, content))
    self.assertEqual([d.text for d in documents], ['one', 'two\u2028x'])

  @parameterized.parameters('a.txt', 'a.jsonl', 'a.jsonl.gz')
  def test_a_byte_order_mark_is_no_text(self, name):
    content = b'plain' if name == 'a.txt' else _LINES
    pack = gzip.compress if name.endswith('.gz') else bytes
    expected = self.read(self.write(name, pack(content)))
    path = self.write(name, pack(b'\xef\xbb\xbf' + content))
    self.assertEqual(self.read(path), expected)
    only = self.write('only.txt', b'\xef\xbb\xbf')
    self.assertEmpty(self.read(only))

  def test_a_byte_order_mark_before_a_later_line_is_no_text(self):
    line = b'\xef\xbb\xbf{"text": "one"}\n'  # Two files, one after the other.
    self.assertLen(self.read(self.write('a.jsonl', line * 2)), 2)

  def test_a_huge_number_in_another_field_refuses_nothing(self):
    line = b'{"id": ' + b'7' * 5000 + b', "text": "one"}'
    self.assertEqual(self.read(self.write('a.jsonl', line))[0].text, 'one')
    with self.assertRaisesRegex(DataError, "with a string 'text'"):
      self.read(self.write('b.jsonl', b'{"text": ' + b'7' * 5000 + b'}'))

  def test_another_field_can_be_the_text(self):
    path = self.write('a.jsonl', b'{"body": "one", "text": 3}')
    self.assertEqual(self.read(path, text_field='body')[0].text, 'one')
    with self.assertRaisesRegex(DataError, 'data.text_field'):
      self.read(path)


class LimitTest(FormatsTestCase):
  def assert_too_long(self, path: pathlib.Path, **rules) -> None:
    with self.assertRaisesRegex(
      DataError, r'longer than 100 bytes; .*data\.max_document_bytes'
    ):
      self.read(path, max_document_bytes=100, **rules)

  def test_a_document_may_have_as_many_bytes_as_the_limit(self):
    path = self.write('a.txt', b'x' * 100)
    self.assertLen(self.read(path, max_document_bytes=100), 1)
    self.assert_too_long(self.write('a.txt', b'x' * 101))

  def test_a_line_is_a_document(self):
    path = self.write('a.jsonl', b'{"text": "some"}\n' * 50)
    self.assertLen(self.read(path, max_document_bytes=100), 50)
    self.assert_too_long(self.write('a.jsonl', b'{"text": "%s"}' % (b'x' * 99)))

  def test_a_sparse_file_is_refused_by_its_size(self):
    path = self.write('a.txt', b'')
    with path.open('r+b') as file:
      file.truncate(4 << 30)
    with self.assertRaisesRegex(DataError, 'longer than 268435456 bytes'):
      self.read(path)

  def test_a_long_file_that_is_no_text_is_passed_over_not_refused(self):
    path = self.write('a.bin', b'\xff' + b'x' * 200)
    with self.assertRaises(reading_rules.NotTextError):
      self.read(path, max_document_bytes=100)

  def test_a_line_that_a_small_file_unpacks_to_is_read_up_to_the_limit(self):
    path = self.write('a.jsonl.gz', gzip.compress(b'x' * 50_000_000))
    self.assertLess(path.stat().st_size, 100_000)
    tracemalloc.start()
    self.assert_too_long(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    self.assertLess(peak, 1_000_000)

  def test_blank_lines_without_end_are_refused(self):
    path = self.write('a.jsonl.gz', gzip.compress(b'\n' * 3000))
    self.assertEmpty(self.read(path))
    with (
      mock.patch.object(formats, '_MAX_BLANK_LINES', 1000),
      self.assertRaisesRegex(DataError, '1001 lines in a row are blank'),
    ):
      self.read(path)

  @absltest.skipUnless(_HAS_PYARROW, 'pyarrow is not installed')
  def test_a_row_is_a_document(self):
    import pyarrow
    import pyarrow.parquet

    path = self.folder / 'a.parquet'
    for texts, enough in ((['x' * 50] * 20, True), (['x'] * 20, False)):
      if not enough:
        texts = [*texts[:7], 'y' * 101, *texts[8:]]
      pyarrow.parquet.write_table(pyarrow.table({'text': texts}), path)
      if enough:
        self.assertLen(self.read(path, max_document_bytes=100), 20)
      else:
        self.assert_too_long(path)
    pyarrow.parquet.write_table(pyarrow.table({'text': ['y' * 999]}), path)
    self.assert_too_long(path)


class MessagesTest(FormatsTestCase):
  def lines(self, *records) -> pathlib.Path:
    return self.write('a.jsonl', '\n'.join(map(json.dumps, records)).encode())

  def test_without_a_template_a_conversation_is_plain_text(self):
    talk = [
      {'role': 'user', 'content': 'Why?'},
      {'role': 'assistant', 'content': 'So.'},
    ]
    path = self.lines({'messages': talk}, {'text': 'one'}, {'messages': []})
    self.assertEqual(
      self.read(path),
      [
        Document(
          'name:1', 'user: Why?\n\nassistant: So.\n', from_messages=True
        ),
        Document('name:2', 'one'),
      ],
    )

  def test_text_comes_before_messages(self):
    path = self.lines({'messages': ['no matter'], 'text': 'one'})
    self.assertEqual(self.read(path), [Document('name:1', 'one')])

  def test_many_are_rendered_at_a_time_in_their_order(self):
    sizes = []

    def render(conversations):
      sizes.append(len(conversations))
      return [
        reading_rules.Rendered(m[0]['n'], m[0]['n'] + '!', '!')
        for m in conversations
      ]

    records: list[dict[str, Any]] = [
      {'messages': [{'n': f'{n}'}]} for n in range(50)
    ]
    records[20] = {'text': '20'}
    with mock.patch.object(formats, '_RENDERED_ROWS', 20):
      documents = self.read(self.lines(*records), render=render)
    self.assertEqual([d.text for d in documents], [f'{n}' for n in range(50)])
    self.assertEqual((documents[3].marked, documents[3].mark), ('3!', '!'))
    self.assertEqual(sizes, [20, 20, 9])

  @parameterized.parameters(
    ([{'role': 'user'}], "a.jsonl:2 has 'messages' that can't be used: a mess"),
    (['\ud800'], "a.jsonl:2 has a lone surrogate in 'messages'"),
  )
  def test_what_can_not_be_rendered_is_named(self, messages, message):
    talk = [{'role': 'user', 'content': 'x'}]
    with self.assertRaisesRegex(DataError, message):
      self.read(self.lines({'messages': talk}, {'messages': messages}))


class ParquetTest(FormatsTestCase):
  def table(self, **columns) -> pathlib.Path:
    import pyarrow
    import pyarrow.parquet

    path = self.folder / 'a.parquet'
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path

  @absltest.skipUnless(_HAS_PYARROW, 'pyarrow is not installed')
  def test_rows_are_documents_without_empty_ones(self):
    path = self.table(
      text=['one', '', None, 'two'] * 700, id=[1, 2, 3, 4] * 700
    )
    documents = self.read(path)
    self.assertLen(documents, 1400)
    self.assertEqual(
      documents[:2],
      [
        Document('name:1', 'one'),
        Document('name:4', 'two'),
      ],
    )
    self.assertEqual(documents[-1], Document('name:2800', 'two'))

  @absltest.skipUnless(_HAS_PYARROW, 'pyarrow is not installed')
  def test_a_table_without_text_is_refused(self):
    for columns in ({'body': ['x']}, {'text': [3]}):
      with self.assertRaisesRegex(DataError, "no column 'text' of strings"):
        self.read(self.table(**columns))

  @absltest.skipUnless(_HAS_PYARROW, 'pyarrow is not installed')
  def test_another_column_can_be_the_text(self):
    path = self.table(other=[{'body': 'no'}], body=['yes'])
    self.assertEqual(self.read(path, text_field='body')[0].text, 'yes')

  @absltest.skipUnless(_HAS_PYARROW, 'pyarrow is not installed')
  def test_a_broken_file_is_named(self):
    content = self.table(text=['some text'] * 99).read_bytes()
    for broken in (b'', b'PAR1', content[:-9]):
      with self.assertRaisesRegex(DataError, 'a.parquet is no parquet file'):
        self.read(self.write('a.parquet', broken))

  def test_without_pyarrow_the_extra_is_named(self):
    path = self.write('a.parquet', b'PAR1')
    with (
      mock.patch.dict(sys.modules, {'pyarrow': None}),
      self.assertRaisesRegex(DataError, r"pip install 'seekax\[data\]'"),
    ):
      self.read(path)


if __name__ == '__main__':
  absltest.main()
