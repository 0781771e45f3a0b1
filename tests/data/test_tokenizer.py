"""Laws of the tokenizer: exact round trips, text stays text, a safe cache."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
import tokenizers

from seekax.data import sources, tokenizer_files, tokenizer_training
from seekax.data import tokenizer as tokenizer_lib

_TEXTS = (
  'def add(a, b):\n    """Adds."""\n    return a + b\n' * 5,
  'class Node:\n  def __init__(self):\n    self.children = []\n' * 5,
  'import os\nimport sys\nprint(1234567, os.path)\n' * 5,
)
_DOCUMENTS = [sources.Document(f'{n}.py', t) for n, t in enumerate(_TEXTS)]
_ODD_TEXTS = (
  '',
  ' ',
  '\n\n\t  \r\n',
  'plain words',
  '\x00\x01\x7f\ufeff',
  'naïve 漢字 🙂 \u2028 e\u0301',
  '     indented\n\t\tmore  \n\n\n',
  '0123456789 3.14e-10',
  ''.join(map(chr, range(0x250))),
  '<|bos|><|eos|> <s> [BOS]',
)


# Of LoadTest.write.
_FOUR = (('<s>', True), ('</s>', True), ('<|eot|>', True), ('[GO]', False))


def _small() -> tokenizer_lib.Tokenizer:
  return tokenizer_training.train(_TEXTS, 320)


def _with_controls(*added: tuple[str, dict[str, bool]]) -> str:
  """The small tokenizer's JSON with these instead of its added tokens.

  Each is special and has no other flag, but for what its dict says.
  """
  definition = json.loads(_small().to_json())
  # Ids 0 and 1 were BOS and EOS, all later ones move up.
  definition['model']['vocab'] = {
    piece: token_id - 2
    for piece, token_id in definition['model']['vocab'].items()
    if token_id > 1
  }
  flags = ('single_word', 'lstrip', 'rstrip', 'normalized')
  token = {**dict.fromkeys(flags, False), 'special': True}
  definition['added_tokens'] = [
    {'id': n, 'content': content, **token, **changes}
    for n, (content, changes) in enumerate(added, 318)
  ]
  return json.dumps(definition)


class TrainTest(parameterized.TestCase):
  @parameterized.parameters(*_ODD_TEXTS)
  def test_decode_inverts_encode(self, text):
    tokenizer = _small()
    ids = tokenizer.encode(text)
    self.assertEqual(ids.dtype, np.int32)
    self.assertEqual(ids.ndim, 1)
    self.assertEqual(tokenizer.decode(ids), text)

  def test_decode_inverts_encode_for_random_characters(self):
    tokenizer = _small()
    rng = np.random.default_rng(0)
    for limit in (0x80, 0x800, 0xD800, 0x110000):
      codes = rng.integers(0, limit, 2000)
      codes = codes[(codes < 0xD800) | (codes > 0xDFFF)]
      text = ''.join(map(chr, codes))
      self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)

  def test_smallest_vocabulary_holds_every_byte(self):
    tokenizer = tokenizer_training.train([], tokenizer_lib.MIN_VOCAB_SIZE)
    self.assertEqual(tokenizer.vocab_size, 258)
    text = 'é漢🙂\x00'
    self.assertLen(tokenizer.encode(text), len(text.encode()))
    self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)

  def test_special_strings_in_text_stay_text(self):
    tokenizer = _small()
    ids = tokenizer.encode('a<|bos|>b<|eos|>')
    self.assertNoCommonElements(ids, (tokenizer.bos_id, tokenizer.eos_id))
    self.assertEqual(tokenizer.decode(ids), 'a<|bos|>b<|eos|>')

  def test_control_tokens_are_first_and_have_no_text(self):
    tokenizer = _small()
    self.assertEqual((tokenizer.bos_id, tokenizer.eos_id), (0, 1))
    framed = [0, *tokenizer.encode('text'), 1]
    self.assertEqual(tokenizer.decode(framed), 'text')

  def test_encode_adds_no_control_token(self):
    self.assertGreater(_small().encode('def').min(), 1)

  def test_what_the_library_can_not_do_is_one_line(self):
    class PanicException(BaseException):
      """As the library raises it."""

    tokenizer = _small()
    tokenizer._encoder = mock.Mock()
    call = tokenizer._encoder.encode_batch_fast
    call.side_effect = PanicException('called `Result::unwrap()`\n on an Err')
    with self.assertRaisesRegex(sources.DataError, 'fails on a text .called'):
      tokenizer.encode('x')
    call.side_effect = KeyboardInterrupt
    with self.assertRaises(KeyboardInterrupt):
      tokenizer.encode('x')

  def test_many_equals_one_at_a_time(self):
    tokenizer = _small()
    with mock.patch.object(tokenizer_lib, '_BLOCK_CHARACTERS', 100):
      many = tokenizer.encode_many(_TEXTS + _ODD_TEXTS)
    for ids, text in zip(many, _TEXTS + _ODD_TEXTS, strict=True):
      np.testing.assert_array_equal(ids, tokenizer.encode(text))

  def test_digits_go_in_threes_and_indentation_in_one(self):
    tokenizer = tokenizer_training.train(['12345678\n        x\n' * 50], 400)
    pieces = [
      tokenizer.decode([i]) for i in tokenizer.encode('1234\n        x')
    ]
    self.assertEqual(pieces, ['123', '4', '\n', ' ' * 8, 'x'])

  def test_training_is_deterministic_across_processes(self):
    program = (
      'from seekax.data import tokenizer_training\n'
      f'print(tokenizer_training.train({_TEXTS!r}, 400).to_json(), end="")'
    )
    here = tokenizer_training.train(_TEXTS, 400).to_json()
    there = subprocess.run(
      [sys.executable, '-c', program],
      env={**os.environ, 'PYTHONHASHSEED': '7', 'RAYON_NUM_THREADS': '1'},
      stdout=subprocess.PIPE,
      check=True,
    ).stdout.decode()
    self.assertEqual(here, there)

  @parameterized.parameters(-1, 0, 257)
  def test_too_small_vocabulary_is_an_error(self, vocab_size):
    with self.assertRaisesRegex(sources.DataError, f'={vocab_size} is below'):
      tokenizer_training.train(_TEXTS, vocab_size)

  def test_lone_surrogate_is_an_error(self):
    with self.assertRaisesRegex(sources.DataError, 'not valid Unicode'):
      _small().encode('a\udcff')


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory()), 'tokenizer.json'
    )

  def write(self, *added: tuple[str, bool], **changes) -> None:
    """Writes a tokenizer whose added tokens are (content, special) pairs."""
    source = _with_controls(*((c, {'special': s}) for c, s in added))
    definition = json.loads(source)
    self.path.write_text(json.dumps({**definition, **changes}))

  def test_saved_file_loads_the_same(self):
    tokenizer = _small()
    tokenizer.save(self.path)
    loaded = tokenizer_files.load(self.path)
    self.assertEqual(loaded.to_json(), tokenizer.to_json())
    for text in _TEXTS:
      np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))
    self.assertLen(list(self.path.parent.iterdir()), 1)

  def test_loaded_file_is_saved_byte_for_byte(self):
    self.write(('<s>', True), ('</s>', True), ('<think>', False))
    content = self.path.read_bytes().replace(b', ', b',\r\n')
    self.path.write_bytes(content)
    tokenizer_files.load(self.path).save(self.path)
    self.assertEqual(self.path.read_bytes(), content)

  @parameterized.parameters(
    ('<|bos|>', '<|eos|>'),
    ('<|begin▁of▁sentence|>', '<|end▁of▁sentence|>'),
    ('<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>'),
    ('<s>', '</s>'),
    ('<|begin_of_text|>', '<|end_of_text|>'),
    ('[BOS]', '[EOS]'),
    ('[BOS]', '<|endoftext|>'),
  )
  def test_well_known_control_tokens_are_found(self, bos, eos):
    self.write((bos, True), (eos, True))
    tokenizer = tokenizer_files.load(self.path)
    self.assertEqual((tokenizer.bos_id, tokenizer.eos_id), (318, 319))
    ids = tokenizer.encode(f'{bos}x{eos}')
    self.assertLess(ids.max(), 318)
    self.assertEqual(tokenizer.decode([318, *ids, 319]), f'{bos}x{eos}')

  def test_vocab_size_covers_holes_in_the_ids(self):
    tokenizer = json.loads(_small().to_json())
    tokenizer['model']['vocab']['unused'] = 500
    self.path.write_text(json.dumps(tokenizer))
    self.assertEqual(tokenizer_files.load(self.path).vocab_size, 501)

  def test_ids_that_the_library_would_replace_are_an_error(self):
    self.write(('<s>', True), ('</s>', True))
    content = self.path.read_text().replace('"id": 319', '"id": 400')
    self.path.write_text(content)
    with self.assertRaisesRegex(sources.DataError, "'</s>' has id 400 .* 319"):
      tokenizer_files.load(self.path)

  def test_unmarked_control_token_is_shown_but_not_read_from_text(self):
    self.write(('<s>', True), ('</s>', True), ('<think>', False))
    tokenizer = tokenizer_files.load(self.path)
    self.assertNotIn(320, tokenizer.encode('<think>'))
    self.assertEqual(tokenizer.decode([320]), '<think>')

  def test_added_run_of_spaces_stays_a_token(self):
    self.write(('<s>', True), ('</s>', True), (' ' * 8, False))
    tokenizer = tokenizer_files.load(self.path)
    self.assertIn(320, tokenizer.encode('x' + ' ' * 8 + 'y'))

  def test_truncation_and_padding_of_the_file_are_ignored(self):
    truncation = {'direction': 'Right', 'max_length': 2, 'stride': 0}
    padding = {'strategy': {'Fixed': 99}, 'direction': 'Right'}
    padding |= {'pad_to_multiple_of': None, 'pad_id': 0, 'pad_type_id': 0}
    self.write(
      ('<s>', True),
      ('</s>', True),
      truncation={**truncation, 'strategy': 'LongestFirst'},
      padding={**padding, 'pad_token': '[PAD]'},
    )
    tokenizer = tokenizer_files.load(self.path)
    text = 'q w r t z'
    self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)

  @parameterized.parameters(
    ((('</s>', True),), 'has no BOS token'),
    ((('<s>', True),), 'has no EOS token'),
  )
  def test_missing_control_token_is_an_error(self, added, message):
    self.write(*added)
    with self.assertRaisesRegex(sources.DataError, f'json: .*{message}'):
      tokenizer_files.load(self.path)

  @parameterized.parameters(
    ('', 'not a tokenizer.json'),
    ('{"model": {}}', 'not a tokenizer.json'),
    ('[]', 'not a tokenizer.json'),
    ('\udcff', 'not UTF-8 at byte 0'),
  )
  def test_broken_file_is_named(self, content, message):
    self.path.write_bytes(content.encode('utf-8', 'surrogateescape'))
    with self.assertRaisesRegex(sources.DataError, f'{self.path}.*{message}'):
      tokenizer_files.load(self.path)

  def test_cut_file_is_an_error(self):
    self.path.write_text(_small().to_json()[:-100])
    with self.assertRaisesRegex(sources.DataError, 'not a tokenizer.json'):
      tokenizer_files.load(self.path)

  def test_missing_file_and_folder_are_named(self):
    for path in (self.path, self.path.parent):
      with self.assertRaisesRegex(sources.DataError, f'cannot read .*{path}'):
        tokenizer_files.load(path)

  def test_given_names_win_over_known_ones(self):
    self.write(*_FOUR)
    tokenizer = tokenizer_files.load(self.path, eos='<|eot|>')
    self.assertEqual((tokenizer.bos, tokenizer.bos_id), ('<s>', 318))
    self.assertEqual((tokenizer.eos, tokenizer.eos_id), ('<|eot|>', 320))
    tokenizer = tokenizer_files.load(self.path, bos='[GO]')
    self.assertEqual((tokenizer.bos, tokenizer.bos_id), ('[GO]', 321))

  def test_unknown_given_name_is_an_error(self):
    self.write(*_FOUR)
    for names in ({'bos': '<|eot'}, {'eos': '<|eot'}):
      with self.assertRaisesRegex(sources.DataError, "json: .*'<|eot'.*given"):
        tokenizer_files.load(self.path, **names)

  def test_given_name_is_not_read_from_text(self):
    self.write(*_FOUR)
    tokenizer = tokenizer_files.load(self.path, bos='[GO]')
    self.assertNotIn(321, tokenizer.encode('[GO]'))
    self.assertIn(321, tokenizer.encode_with_controls('[GO]'))

  def test_two_tokens_of_one_id_are_an_error(self):
    definition = json.loads(_small().to_json())
    definition['model']['vocab']['other'] = 5
    self.path.write_text(json.dumps(definition))
    with self.assertRaisesRegex(sources.DataError, "'other' share the id 5"):
      tokenizer_files.load(self.path)

  def test_id_beyond_int32_is_an_error(self):
    definition = json.loads(_small().to_json())
    definition['model']['vocab']['far'] = 2**31
    self.path.write_text(json.dumps(definition))
    with self.assertRaisesRegex(sources.DataError, "'far' .* out of range"):
      tokenizer_files.load(self.path)

  def test_key_that_occurs_twice_is_an_error(self):
    content = _small().to_json().replace('"a":', '"b":1,"a":')
    self.path.write_text(content)
    with self.assertRaisesRegex(sources.DataError, "'b' occurs twice"):
      tokenizer_files.load(self.path)

  def test_added_token_that_occurs_twice_is_an_error(self):
    self.write(('<s>', True), ('</s>', True))
    definition = json.loads(self.path.read_text())
    definition['added_tokens'].append(definition['added_tokens'][0])
    self.path.write_text(json.dumps(definition))
    with self.assertRaisesRegex(sources.DataError, "'<s>' occurs twice"):
      tokenizer_files.load(self.path)

  def test_embedding_needs_a_row_for_every_id(self):
    tokenizer = _small()
    for rows in (320, 321, 1000):
      tokenizer.check_fits(rows)
    with self.assertRaisesRegex(sources.DataError, 'up to 319 .* only 319 r'):
      tokenizer.check_fits(319)

  def folder(self, config: str | bytes | None) -> pathlib.Path:
    """A released model's folder with a tokenizer_config.json of this text."""
    self.write(*_FOUR)
    path = self.path.with_name('tokenizer_config.json')
    if config is not None:
      path.write_bytes(config.encode() if isinstance(config, str) else config)
    return self.path.parent

  @parameterized.parameters(
    (None, '<s>', '</s>'),
    ('{}', '<s>', '</s>'),
    ('{"bos_token": null, "eos_token": "<|eot|>"}', '<s>', '<|eot|>'),
    ('{"bos_token": {"content": "[GO]"}}', '[GO]', '</s>'),
    ('{"auto_map": {"AutoTokenizer": ["x.Y", null]}}', '<s>', '</s>'),
  )
  def test_folder_names_its_control_tokens(self, config, bos, eos):
    tokenizer = tokenizer_files.load_folder(self.folder(config))
    self.assertEqual((tokenizer.bos, tokenizer.eos), (bos, eos))

  @parameterized.parameters(
    ('{"bos_token": ', 'tokenizer_config.json is not JSON'),
    ('[' * 100_000, 'tokenizer_config.json is not JSON'),
    ('["<s>"]', 'tokenizer_config.json is not a JSON object'),
    ('{"eos_token": 7}', 'tokenizer_config.json: eos_token is neither'),
    ('{"eos_token": {"content": 7}}', 'tokenizer_config.json: eos_token is n'),
    ('{"eos_token": "<|no|>"}', "tokenizer.json: .* no token '<|no|>'"),
    (b'{"a": "\xff"}', 'tokenizer_config.json is not UTF-8 at byte 7'),
    (b' ' * (16 << 20) + b'{}', 'tokenizer_config.json is larger than'),
  )
  def test_broken_config_of_a_folder_is_named(self, config, message):
    with self.assertRaisesRegex(sources.DataError, message) as raised:
      tokenizer_files.load_folder(self.folder(config))
    self.assertNotIn('\n', str(raised.exception))

  def test_tokens_of_the_config_alone_are_one_id_each(self):
    names = {318: '<s>', 322: '<|im_end|>', 323: ' tool '}
    entries = {
      str(i): {'content': x, 'special': i < 323} for i, x in names.items()
    }
    config = json.dumps({'added_tokens_decoder': entries})
    tokenizer = tokenizer_files.load_folder(self.folder(config))
    self.assertEqual(tokenizer.vocab_size, 324)
    ids = tokenizer.encode_with_controls('x<|im_end|>')
    self.assertEqual(ids[-1], 322)
    # Text never becomes one, but for those that are plain text.
    self.assertNotIn(322, tokenizer.encode('x<|im_end|>'))
    self.assertIn(323, tokenizer.encode('a tool x'))
    # It is one file from now on.
    again = tokenizer_lib.Tokenizer(tokenizer.to_json())
    self.assertEqual(again.encode_with_controls('<|im_end|>'), [322])

  @parameterized.parameters(
    ({'5': {'content': '<s>'}}, "gives '<s>' the id 5, tokenizer.json has"),
    ({'400': {'content': '<x>'}}, "'<x>' has id 400 but must have 322"),
    ({'x': {'content': '<x>'}}, "maps 'x' to no token"),
    ({'322': {'content': 7}}, "maps '322' to no token"),
    ([], 'is no JSON object'),
  )
  def test_tokens_of_the_config_that_can_not_be_are_refused(self, given, words):
    config = json.dumps({'added_tokens_decoder': given or [1]})
    with self.assertRaisesRegex(sources.DataError, words):
      tokenizer_files.load_folder(self.folder(config))

  def test_for_other_tools_bos_comes_before_every_text(self):
    tokenizer = _small()
    theirs = tokenizers.Tokenizer.from_str(tokenizer.to_json_with_bos())
    ids = [tokenizer.bos_id, *tokenizer.encode('def f')]
    self.assertEqual(theirs.encode('def f').ids, ids)
    self.assertEqual(
      theirs.encode('def f', add_special_tokens=False).ids, ids[1:]
    )
    # Once is enough, and what a release says stays.
    again = tokenizer_lib.Tokenizer(tokenizer.to_json_with_bos())
    self.assertEqual(again.to_json_with_bos(), tokenizer.to_json_with_bos())
    np.testing.assert_array_equal(again.encode('def f'), ids[1:])

  def test_config_that_is_no_file_is_an_error(self):
    path = self.folder(None) / 'tokenizer_config.json'
    os.mkfifo(path)
    with self.assertRaisesRegex(sources.DataError, 'json is not a file'):
      tokenizer_files.load_folder(path.parent)
    path.unlink()
    path.symlink_to('nowhere')
    with self.assertRaisesRegex(sources.DataError, 'cannot read .*config.json'):
      tokenizer_files.load_folder(path.parent)

  def test_folder_without_a_tokenizer_is_an_error(self):
    with self.assertRaisesRegex(
      sources.DataError, f'cannot read .*{self.path}'
    ):
      tokenizer_files.load_folder(self.path.parent)
    self.path.with_name('tiktoken.model').write_text('')
    with self.assertRaisesRegex(sources.DataError, 'tiktoken.model but no tok'):
      tokenizer_files.load_folder(self.path.parent)


class ControlsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    source = _with_controls(
      ('<s>', {}),
      ('</s>', {}),
      ('<|im|>', {}),
      ('<|im|>~', {}),  # Special by its mark alone.
      ('<think>', {'special': False}),
      ('<｜User｜>', {'special': False, 'normalized': True}),
      ('<｜end▁of▁sentence｜>', {}),
      ('[BOS]', {}),
      ('aba', {}),
      ('=====', {'special': False}),
      ('<left>', {'lstrip': True}),
      ('<right>', {'rstrip': True}),
      ('<both>', {'lstrip': True, 'rstrip': True}),
      ('<word>', {'single_word': True}),
      ('★', {}),
    )
    self.tokenizer = tokenizer_lib.Tokenizer(source)
    self.theirs = tokenizers.Tokenizer.from_str(source)
    added = json.loads(source)['added_tokens']
    self.controls = {
      t['content']: t['id'] for t in added if t['content'] != '====='
    }
    self.rng = np.random.default_rng(0)

  def random_text(self, length: int) -> str:
    """Whole control tokens, parts of them, and what may stand between."""
    others = ('def', '  \t', 'é', '漢字', '=====', *'<>|b_. \n')
    names = [name for name in (*self.controls, *others) if name != '★']
    words = [names[n] for n in self.rng.integers(0, len(names), length)]
    cut = self.rng.random(length) < 0.2
    return ''.join(
      w[: self.rng.integers(len(w))] if c else w
      for w, c in zip(words, cut, strict=True)
    )

  def test_controls_become_the_ids_that_hugging_face_gives(self):
    for length in (*range(5), *([12] * 300)):
      text = self.random_text(length)
      ids = self.tokenizer.encode_with_controls(text)
      theirs = self.theirs.encode(text, add_special_tokens=False).ids
      self.assertEqual(ids.dtype, np.int32)
      self.assertEqual(ids.tolist(), theirs, msg=repr(text))

  @parameterized.parameters(
    (
      '<｜User｜>def<｜end▁of▁sentence｜>',
      ['<｜User｜>', '<｜end▁of▁sentence｜>'],
    ),
    ('<|im|><|im|>~', ['<|im|>', '<|im|>~']),
    ('<think> <thin k>', ['<think>']),
    ('a<word> <word>', ['<word>']),
    ('★', []),  # It could not be broken in untrusted text.
  )
  def test_controls_are_found(self, text, names):
    ids = self.tokenizer.encode_with_controls(text).tolist()
    found = [i for i in ids if i in self.controls.values()]
    self.assertEqual(found, [self.controls[name] for name in names])

  def test_plain_text_is_encoded_as_ever(self):
    for text in _TEXTS + _ODD_TEXTS[:-1]:
      np.testing.assert_array_equal(
        self.tokenizer.encode_with_controls(text), self.tokenizer.encode(text)
      )

  def test_broken_controls_are_text(self):
    for _ in range(300):
      text = self.random_text(8)
      broken = self.tokenizer.break_controls(text, '\ufdd0')
      self.assertEqual(broken.replace('\ufdd0', ''), text)
      np.testing.assert_array_equal(
        self.tokenizer.encode_with_controls(broken, '\ufdd0'),
        self.tokenizer.encode(text),
        err_msg=repr(text),
      )

  def test_no_control_arises_between_texts(self):
    """Pieces of a control token, trimmed, alone and side by side."""
    for name in self.controls:
      for a, b in ((1, 1), (1, 2), (2, len(name) - 1)):
        pieces = [name[:a], name[a:b], name[b:]]
        for space in ('', ' '):
          broken = [
            self.tokenizer.break_controls(space + p + space, '\ufdd0').strip()
            for p in pieces
          ]
          for trusted in ((), (0,), (1,), (2,), (0, 2)):
            text = ''.join(
              pieces[n] if n in trusted else broken[n] for n in range(3)
            )
            if any(pieces[n] for n in range(3) if n not in trusted):
              ids = self.tokenizer.encode_with_controls(text, '\ufdd0')
              self.assertNotIn(self.controls[name], ids, msg=repr(text))

  def test_ordinary_text_is_not_marked(self):
    for text in (*_TEXTS, 'if a < b and c > d:', ' ', '', 'x <b>bold</b> y'):
      self.assertEqual(self.tokenizer.break_controls(text, '\ufdd0'), text)

  def test_kept_controls_stay_whole(self):
    broken = self.tokenizer.break_controls('<think>a<s>', '|', ('<think>',))
    self.assertEqual(broken, '<think>a<|s>')

  def test_long_white_space_takes_no_time(self):
    text = ' ' * 1_000_000 + '<left><right>' + ' ' * 1_000_000
    start = time.process_time()
    self.assertLen(self.tokenizer.encode_with_controls(text), 2)
    self.tokenizer.break_controls(text, '\ufdd0')
    self.assertLess(time.process_time() - start, 5)

  def test_without_controls_nothing_is_special(self):
    definition = json.loads(_small().to_json())
    definition['added_tokens'] = []
    tokenizer = tokenizer_lib.Tokenizer(json.dumps(definition))
    text = '<|bos|>(?!)'
    self.assertEqual(tokenizer.break_controls(text, '|'), text)
    np.testing.assert_array_equal(
      tokenizer.encode_with_controls(text), tokenizer.encode(text)
    )


class CacheTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )
    self.enter_context(
      mock.patch.dict(os.environ, {'SEEKAX_CACHE': str(self.folder)})
    )

  def files(self) -> list[pathlib.Path]:
    return [path for path in self.folder.rglob('*') if path.is_file()]

  def assert_not_trained(self, documents, vocab_size=300):
    with mock.patch.object(tokenizer_training, 'train') as train:
      tokenizer = tokenizer_training.for_corpus(documents, vocab_size)
    train.assert_not_called()
    return tokenizer

  def test_second_call_takes_the_same_tokenizer_from_the_cache(self):
    trained = tokenizer_training.for_corpus(_DOCUMENTS, 300)
    cached = self.assert_not_trained(_DOCUMENTS)
    self.assertEqual(cached.to_json(), trained.to_json())
    self.assertLen(self.files(), 1)

  def test_names_texts_and_size_are_part_of_the_key(self):
    first = _DOCUMENTS[0]
    renamed = [sources.Document('other', first.text), *_DOCUMENTS[1:]]
    changed = [sources.Document(first.name, 'x'), *_DOCUMENTS[1:]]
    for documents in (_DOCUMENTS, renamed, changed):
      tokenizer_training.for_corpus(documents, 300)
    tokenizer_training.for_corpus(_DOCUMENTS, 301)
    self.assertLen(self.files(), 4)

  @parameterized.parameters(b'', b'\xff\xff', b'{}')
  def test_corrupt_file_is_retrained_and_replaced(self, content):
    trained = tokenizer_training.for_corpus(_DOCUMENTS, 300)
    self.files()[0].write_bytes(content)
    again = tokenizer_training.for_corpus(_DOCUMENTS, 300)
    self.assertEqual(again.to_json(), trained.to_json())
    self.assert_not_trained(_DOCUMENTS)

  def test_one_flipped_bit_is_noticed(self):
    trained = tokenizer_training.for_corpus(_DOCUMENTS, 300)
    (path,) = self.files()
    content = bytearray(path.read_bytes())
    content[content.rindex(b'"a"') + 1] ^= 2
    path.write_bytes(content)
    again = tokenizer_training.for_corpus(_DOCUMENTS, 300)
    self.assertEqual(again.to_json(), trained.to_json())

  def test_unwritable_cache_is_no_error(self):
    (self.folder / 'file').write_text('')
    with mock.patch.dict(os.environ, {'SEEKAX_CACHE': f'{self.folder}/file'}):
      tokenizer = tokenizer_training.for_corpus(_DOCUMENTS, 300)
    self.assertEqual(tokenizer.vocab_size, 300)

  def test_failed_write_leaves_no_file(self):
    with mock.patch.object(os, 'fsync', side_effect=OSError(28, 'no space')):
      tokenizer_training.for_corpus(_DOCUMENTS, 300)
    self.assertEmpty(self.files())

  def test_cache_folder_follows_the_environment(self):
    for name, expected in (
      ('XDG_CACHE_HOME', 'x/seekax'),
      ('HOME', 'x/.cache/seekax'),
    ):
      environment = {name: str(self.folder / 'x')}
      with mock.patch.dict(os.environ, environment, clear=True):
        tokenizer_training.for_corpus(_DOCUMENTS, 300)
      self.assertTrue((self.folder / expected).is_dir())

  def test_no_home_folder_is_no_error(self):
    environment = {'SEEKAX_CACHE': '', 'XDG_CACHE_HOME': ''}
    with (
      mock.patch.dict(os.environ, environment),
      mock.patch.object(pathlib.Path, 'home', side_effect=RuntimeError),
    ):
      tokenizer_training.for_corpus(_DOCUMENTS, 300)

  def test_too_small_vocabulary_is_an_error(self):
    with self.assertRaisesRegex(sources.DataError, 'is below 258'):
      tokenizer_training.for_corpus(_DOCUMENTS, 100)


if __name__ == '__main__':
  absltest.main()
