"""Laws of the sources: names, order, the split, and every bad input."""

import contextlib
import json
import os
import pathlib
import sysconfig
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.train import TrainConfig
from seekax.data import sources
from seekax.data.reading_rules import Rules


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
      mock.patch.object(pathlib.Path, 'open', side_effect=error),
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

  @parameterized.parameters('/dev/zero', '/dev/null')
  def test_a_device_is_not_read(self, path):
    with (
      self.assertNoLogs(),  # One line says it all.
      self.assertRaisesRegex(sources.DataError, 'is not a regular file'),
    ):
      sources.read_documents(path)

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


class PassedOverTest(SourcesTestCase):
  def test_what_is_no_text_is_passed_over_and_counted(self):
    self.write('a.txt', 'a')
    for n in range(5):
      self.write(f'image{n}.png', b'\x89PNG\xff')
    os.mkfifo(self.folder / 'pipe')
    os.symlink('nowhere', self.folder / 'link')
    with self.assertLogs(level='WARNING') as logs:
      self.assertEqual(self.read_folder(), {'a.txt': 'a'})
    self.assertLen(logs.output, 1)
    self.assertEndsWith(
      logs.output[0],
      "passed over files that are not text (7): 'image0.png', 'image1.png', "
      "'image2.png', ...",
    )

  def test_patterns_choose_files(self):
    for name in ('a.md', 'b.txt', 'docs/c.md', 'docs/old/d.md', 'docs/e.rst'):
      self.write(name, name)

    def read(**patterns) -> list[str]:
      (source,) = sources.parse(str(self.folder))
      documents = sources.read_text(source, Rules(**patterns))
      return [document.name for document in documents]

    self.assertEqual(
      read(include='*.md'), ['a.md', 'docs/c.md', 'docs/old/d.md']
    )
    self.assertEqual(
      read(include='docs/*, b.txt', exclude='*/old/*,e.rst'),
      [
        'b.txt',
        'docs/c.md',
      ],
    )
    self.assertEqual(read(exclude='docs/*'), ['a.md', 'b.txt'])
    with self.assertRaisesRegex(sources.DataError, 'holds no text'):
      read(include='*.py')

  def test_a_link_to_a_folder_elsewhere_is_followed(self):
    elsewhere = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    (elsewhere / 'inner').mkdir()
    (elsewhere / 'b.txt').write_text('b')
    (elsewhere / 'inner/c.txt').write_text('c')
    self.write('x/a.txt', 'a')
    os.symlink(elsewhere, self.folder / 'link')
    os.symlink(elsewhere / 'b.txt', self.folder / 'file.txt')
    self.assertEqual(
      self.read_folder(),
      {'file.txt': 'b', 'link/b.txt': 'b', 'link/inner/c.txt': 'c'}
      | {'x/a.txt': 'a'},
    )

  def test_links_in_a_circle_and_to_what_is_read_are_named(self):
    elsewhere = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    (elsewhere / 'b.txt').write_text('b')
    os.symlink(self.folder, elsewhere / 'back')
    self.write('x/a.txt', 'a')
    for name, place in (
      ('again', elsewhere),
      ('link', elsewhere),
      ('self', '.'),
      ('up', '..'),
      ('x/other', self.folder / 'x'),
    ):
      os.symlink(place, self.folder / name)
    with self.assertLogs(level='WARNING') as logs:
      documents = self.read_folder()
    self.assertEqual(documents, {'again/b.txt': 'b', 'x/a.txt': 'a'})
    self.assertIn(
      'passed over links to folders that are read anyway (5)', logs.output[0]
    )


class OwnOutputTest(SourcesTestCase):
  def setUp(self):
    super().setUp()
    self.write('a.txt', 'a')

  def assert_left_out(self, kind: str) -> None:
    with self.assertLogs(level='WARNING') as logs:
      self.assertEqual(self.read_folder(), {'a.txt': 'a'})
    self.assertIn(f"what seekax writes, {kind} (1): 'sub/out'", logs.output[0])

  def test_a_workdir_is_left_out_wherever_it_is(self):
    run = {'config': {'model': {}, 'data': {}}, 'command': 'x'}
    self.write('sub/out/run.json', json.dumps(run))
    self.write('sub/out/metrics.jsonl', '{"step": 1}')
    self.assert_left_out('the workdir of a run')
    with self.assertRaisesRegex(sources.DataError, 'is the workdir of a run'):
      sources.read_documents(str(self.folder / 'sub/out'))

  @parameterized.parameters('manifest.json', 'plan.json')
  def test_tokens_are_left_out_also_unfinished_ones(self, name):
    keys = ('source_sha256', 'tokenizer_sha256', 'shard_documents')
    self.write(f'sub/out/{name}', json.dumps(dict.fromkeys(keys, 'x')))
    self.write('sub/out/part-000000.array_record', 'x')
    self.write('sub/out/tokenizer.json', '{}')
    self.assert_left_out('a folder of tokens')

  def test_weights_are_left_out_with_what_belongs_to_them(self):
    self.write('sub/out/model-00001-of-00002.safetensors', b'\x00')
    self.write('sub/out/config.json', '{}')
    self.assert_left_out('the folder of a model')

  def test_text_beside_weights_alone_is_text(self):
    self.write('b/c.txt', 'c')
    self.write('b/embedding.safetensors', b'\xff')
    self.assertEqual(self.read_folder(), {'a.txt': 'a', 'b/c.txt': 'c'})

  @parameterized.parameters('run.json', 'manifest.json', 'plan.json')
  def test_files_of_others_with_such_a_name_are_text(self, name):
    self.write(f'sub/{name}', '{"config": "x"}')
    self.write(f'other/{name}', 'no JSON')
    self.assertLen(self.read_folder(), 3)

  def test_the_tokenizer_of_the_run_is_no_text(self):
    self.write('tokenizer.json', '{}')
    self.write('tokenizer_config.json', '{}')
    (source,) = sources.parse(str(self.folder))
    for path, count in (
      (self.folder / 'tokenizer.json', 2),
      (self.folder, 1),
      ('', 3),
    ):
      rules = Rules(tokenizer=str(path) if path else '')
      self.assertLen(sources.read_text(source, rules), count)


class ParseTest(SourcesTestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(contextlib.chdir(self.folder))
    self.write('code.jsonl', '{"text": "c"}')
    self.write('books/a.txt', 'a')
    self.write('more/books/a.txt', 'b')

  def test_weights_are_shares(self):
    code, books = sources.parse('7*code.jsonl, 3e0*books/')
    self.assertEqual((code.paths, books.paths), (('code.jsonl',), ('books/',)))
    self.assertAlmostEqual(code.weight, 0.7)
    self.assertAlmostEqual(books.weight, 0.3)
    self.assertEqual(sources.read_text(books)[0].name, 'books/a.txt')
    self.assertEqual(sources.read_text(code)[0].name, 'code.jsonl:1')

  def test_without_weights_they_are_one_source(self):
    documents = sources.read_documents('books,code.jsonl')
    self.assertEqual(
      documents,
      [
        sources.Document('books/a.txt', 'a'),
        sources.Document('code.jsonl:1', 'c'),
      ],
    )

  def test_a_path_that_looks_like_a_mixture_is_a_path(self):
    self.write('0.5*a,b', 'text')
    self.assertLen(sources.parse('0.5*a,b'), 1)
    self.assertEqual(sources.read_documents('0.5*a,b')[0].name, '0.5*a,b')

  @parameterized.parameters(
    ('0.7*code.jsonl,books', 'to some and not to all'),
    ('0.7*code.jsonl,0.3*nowhere', "'nowhere' does not exist"),
    ('code.jsonl,', "'' does not exist"),
    ('0*code.jsonl,1*books', "the weight '0' is not above 0"),
    ('1.2.3*code.jsonl', "the weight '1.2.3' is not above 0"),
    ('1e999*code.jsonl', "the weight '1e999' is not above 0"),
    ('0.5*books,0.5*more/books', "two of the name 'books'"),
    ('-1*books', r"'-1\*books' does not exist"),
  )
  def test_what_can_not_be_read_is_refused(self, text, message):
    with self.assertRaisesRegex(sources.DataError, message):
      sources.parse(text)

  def test_a_mixture_is_no_single_source(self):
    with self.assertRaisesRegex(sources.DataError, 'not a single source'):
      sources.read_documents('0.5*code.jsonl,0.5*books')

  def test_a_folder_is_streamed_in_the_order_of_names(self):
    self.write('books/b.jsonl', '{"text": "1"}\n' * 11)
    names = [d.name for d in sources.stream(sources.parse('books')[0])]
    self.assertEqual(names, ['a.txt', *(f'b.jsonl:{n}' for n in range(1, 12))])


class AbsoluteTest(parameterized.TestCase):
  """Paths that mean the same from any folder."""

  @parameterized.parameters(
    ('stdlib', 'stdlib'),
    ('text', '/at/text'),
    ('/x/text', '/x/text'),
    ('~/text', '/home/me/text'),
    ('a, b/../c', '/at/a,/at/c'),
    ('0.7*a,0.3*~/b', '0.7*/at/a,0.3*/home/me/b'),
    ('0.5*stdlib,0.5*a', '0.5*stdlib,0.5*/at/a'),
  )
  def test_every_path_of_a_source_is_made_absolute(self, given, expected):
    with mock.patch.dict(os.environ, HOME='/home/me'):
      self.assertEqual(sources.absolute(given, '/at'), expected)

  def test_a_folder_with_a_comma_in_its_name_cuts_nothing(self):
    self.assertEqual(sources.absolute('a,b', '/at,home'), 'a,b')
    self.assertEqual(sources.absolute('hf://x/y', '/at'), 'hf://x/y')

  def test_all_paths_of_a_config_are(self):
    config = Config(
      data=DataConfig(source='a', tokenizer='t.json'),
      train=TrainConfig(init_from='w', compilation_cache='auto'),
    )
    found = sources.absolute_paths(config, '/at')
    self.assertEqual(
      (found.data.source, found.data.tokenizer), ('/at/a', '/at/t.json')
    )
    self.assertEqual(found.train.init_from, '/at/w')
    self.assertEqual(found.train.compilation_cache, 'auto')


if __name__ == '__main__':
  absltest.main()
