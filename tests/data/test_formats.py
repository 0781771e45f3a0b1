"""Laws of the formats: what a file holds, and every bad one."""

import gzip
import importlib.util
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from seekax.data import formats
from seekax.data.formats import DataError, Document

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

  def read(self, path: pathlib.Path) -> list[Document]:
    return list(formats.read_file(path, 'name'))


class LinesTest(FormatsTestCase):
  def test_gzipped_lines_are_read_as_plain_ones(self):
    plain = self.read(self.write('a.jsonl', _LINES))
    self.assertEqual(
      plain, [Document('name:1', 'one'), Document('name:4', 'two\u2028x')]
    )
    packed = self.write('a.jsonl.gz', gzip.compress(_LINES))
    self.assertEqual(self.read(packed), plain)

  def test_other_gzipped_files_are_not_text(self):
    with self.assertRaisesRegex(formats.NotUtf8Error, 'a.gz is not UTF-8'):
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
