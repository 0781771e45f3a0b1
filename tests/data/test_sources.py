"""Laws of the sources: names, order, the split, and every bad input."""

import os
import pathlib
import sysconfig
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from seekax.data import sources


class SourcesTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )

  def write(self, name: str, content: bytes | str) -> str:
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(content)
    return str(path)

  def read_folder(self) -> dict[str, str]:
    documents = sources.read_documents(str(self.folder))
    return {document.name: document.text for document in documents}


class ReadTest(SourcesTestCase):
  def test_text_file_is_one_document_with_exact_characters(self):
    path = self.write('a.txt', 'line\r\n\ttab\u2028é\n')
    self.assertEqual(
      sources.read_documents(path),
      [sources.Document('a.txt', 'line\r\n\ttab\u2028é\n')],
    )

  def test_jsonl_is_one_document_per_line_named_by_line(self):
    lines = ['{"text": "one"}', '', '{"text": "two\u2028x", "id": 7}', '']
    path = self.write('a.jsonl', '\n'.join(lines))
    self.assertEqual(
      sources.read_documents(path),
      [
        sources.Document('a.jsonl:1', 'one'),
        sources.Document('a.jsonl:3', 'two\u2028x'),
      ],
    )

  def test_folder_is_read_recursively_and_sorted(self):
    self.write('b/c.txt', 'c')
    self.write('b.txt', 'b')
    self.write('a.jsonl', '{"text": "a"}\r\n')
    documents = self.read_folder()
    self.assertEqual(
      documents, {'a.jsonl:1': 'a', 'b/c.txt': 'c', 'b.txt': 'b'}
    )
    self.assertSequenceEqual(list(documents), sorted(documents))

  def test_hidden_empty_and_compiled_files_are_left_out(self):
    self.write('__pycache__/a.pyc', b'\xff')
    self.write('a.txt', 'a')
    self.write('empty.txt', '')
    self.write('.hidden', b'\xff')
    self.write('.git/config', b'\xff')
    self.assertEqual(self.read_folder(), {'a.txt': 'a'})

  def test_stdlib_has_the_library_without_its_tests(self):
    documents = sources.read_documents('stdlib')
    names = [document.name for document in documents]
    self.assertIn('json/decoder.py', names)
    self.assertSequenceEqual(names, sorted(names))
    self.assertGreater(sum(len(document.text) for document in documents), 5e6)
    for name in names:
      self.assertEndsWith(name, '.py')
      self.assertNoCommonElements(
        name.split('/')[:-1], ('test', 'site-packages', 'idlelib', 'encodings')
      )

  def test_stdlib_skips_other_codings_and_other_files(self):
    self.write('good.py', 'é')
    self.write('latin.py', b'# coding: latin-1\n\xe9')
    self.write('notes.txt', b'\xff')
    self.write('site-packages/other.py', 'x')
    with mock.patch.object(
      sysconfig, 'get_path', return_value=str(self.folder)
    ):
      documents = sources.read_documents('stdlib')
    self.assertEqual(documents, [sources.Document('good.py', 'é')])


class BadSourceTest(SourcesTestCase):
  @parameterized.parameters('', 'no/such/place')
  def test_missing_source_is_named(self, source):
    with self.assertRaisesRegex(
      sources.DataError, f"'{source}' does not exist"
    ):
      sources.read_documents(source)

  @parameterized.parameters('a.txt', 'a.jsonl')
  def test_empty_file_is_an_error(self, name):
    with self.assertRaisesRegex(sources.DataError, 'holds no text'):
      sources.read_documents(self.write(name, ''))

  def test_empty_folder_is_an_error(self):
    with self.assertRaisesRegex(sources.DataError, 'holds no text'):
      sources.read_documents(str(self.folder))

  @parameterized.parameters('a.txt', 'a.jsonl')
  def test_not_utf8_names_file_and_byte(self, name):
    path = self.write(name, 'aé'.encode() + b'\xff')
    with self.assertRaisesRegex(
      sources.DataError, f'{name} is not UTF-8 at byte 3; convert'
    ):
      sources.read_documents(path)
    with self.assertRaisesRegex(sources.DataError, 'not UTF-8 at byte 3'):
      self.read_folder()

  @parameterized.parameters(
    ('{"text": "a"', 'is not JSON'),
    ('[' * 100_000, 'is not JSON'),
    ('["text"]', "is not a JSON object with a string 'text'"),
    ('{"body": "a"}', "is not a JSON object with a string 'text'"),
    ('{"text": 3}', "is not a JSON object with a string 'text'"),
    ('{"text": "ab\\ud800"}', 'has a lone surrogate .* at character 2'),
  )
  def test_malformed_line_names_file_and_line(self, line, message):
    path = self.write('a.jsonl', '{"text": "fine"}\n' + line + '\n')
    with self.assertRaisesRegex(sources.DataError, f'a.jsonl:2 {message}'):
      sources.read_documents(path)

  def test_unreadable_file_is_named(self):
    path = self.write('a.txt', 'a')
    error = PermissionError(13, 'Permission denied')
    with (
      mock.patch.object(pathlib.Path, 'read_bytes', side_effect=error),
      self.assertRaisesRegex(
        sources.DataError, r'cannot read .*a\.txt \(Permission denied\)'
      ),
    ):
      sources.read_documents(path)

  def test_unreadable_folder_is_named(self):
    self.write('inner/a.txt', 'a')
    error = PermissionError(13, 'Permission denied', 'inner')
    with (
      mock.patch.object(os, 'scandir', side_effect=error),
      self.assertRaisesRegex(sources.DataError, 'cannot read inner'),
    ):
      self.read_folder()

  def test_pipe_and_dangling_link_are_named_not_waited_for(self):
    os.mkfifo(self.folder / 'pipe')
    with self.assertRaisesRegex(sources.DataError, 'pipe is not a regular'):
      self.read_folder()
    os.unlink(self.folder / 'pipe')
    os.symlink('nowhere', self.folder / 'link')
    with self.assertRaisesRegex(sources.DataError, 'link is not a regular'):
      self.read_folder()

  def test_message_is_one_line(self):
    with self.assertRaises(sources.DataError) as caught:
      sources.read_documents(self.write('a.jsonl', '{"text":\n"a"}'))
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
