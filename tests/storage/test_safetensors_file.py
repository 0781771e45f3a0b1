"""Laws of the container: round trips, and no header that lies is believed."""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

from absl.testing import absltest, parameterized
import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as others

import published
from seekax.storage import safetensors_file
from seekax.storage.manifest import StorageError
from seekax.storage.safetensors_file import commit, Files, write
from seekax.storage.safetensors_header import Entry, read_header

BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


def arrays() -> dict[str, np.ndarray]:
  """Every dtype; a scalar, an empty tensor, sizes that aren't aligned."""
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 256, (5, 3), dtype=np.uint8)
  return {
    'model.a.weight': rng.standard_normal((3, 4)).astype(np.float32),
    'model.b.weight': bits.view(E4M3),
    'model.b.weight_scale_inv': np.ones((1, 1), np.float32),
    'model.c-1.weight': rng.standard_normal((2, 3, 5)).astype(BF16),
    'scalar': np.array(7, np.float32),
    'empty': np.zeros((0, 4), BF16),
  }


def entries(tensors: dict[str, np.ndarray]) -> list[Entry]:
  names = {np.dtype(np.float32): 'F32', np.dtype(BF16): 'BF16'}
  return [
    Entry(name, names.get(array.dtype, 'F8_E4M3'), array.shape)
    for name, array in tensors.items()
  ]


def blocks(tensors: dict[str, np.ndarray]):
  return [memoryview(array.tobytes()) for array in tensors.values()]


def save(path: pathlib.Path, tensors, metadata=None) -> str:
  digest = write(path, entries(tensors), blocks(tensors), metadata or {})
  commit(path)
  return digest


def read_all(path: pathlib.Path) -> dict[str, np.ndarray]:
  tensors, _ = read_header(path)
  with Files() as files:
    return {
      name: np.frombuffer(
        b''.join(map(bytes, files.blocks(tensor))),
        published.DTYPES[tensor.dtype],
      ).reshape(tensor.shape)
      for name, tensor in tensors.items()
    }


class FileCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / 'model.safetensors'


class RoundTripTest(FileCase):
  def test_what_is_written_is_read_bit_for_bit(self):
    made = arrays()
    save(self.path, made, {'format': 'pt'})
    self.assertEmpty(published.differences(read_all(self.path), made))
    self.assertEmpty(
      published.differences(published.read_file(self.path), made)
    )
    self.assertEqual(read_header(self.path)[1], {'format': 'pt'})

  def test_no_tensor_at_all_is_a_file_too(self):
    save(self.path, {})
    self.assertEqual(read_header(self.path), ({}, {}))

  def test_the_safetensors_package_reads_what_is_written(self):
    made = {k: v for k, v in arrays().items() if v.dtype != E4M3}
    save(self.path, made)
    self.assertEmpty(published.differences(others.load_file(self.path), made))

  def test_the_safetensors_package_reads_fp8_that_is_written(self):
    made = arrays()
    save(self.path, made)
    found = dict(safetensors.deserialize(self.path.read_bytes()))
    self.assertEqual(found['model.b.weight']['dtype'], 'F8_E4M3')
    for name, array in made.items():
      self.assertEqual(tuple(found[name]['shape']), array.shape)
      self.assertEqual(bytes(found[name]['data']), array.tobytes())

  def test_what_the_safetensors_package_writes_is_read(self):
    made = {k: v for k, v in arrays().items() if v.dtype != E4M3}
    others.save_file(made, self.path, metadata={'format': 'pt'})
    self.assertEmpty(published.differences(read_all(self.path), made))

  def test_data_begins_aligned(self):
    for length in range(1, 12):
      made = {'x' * length: np.zeros(1, np.float32)}
      save(self.path, made)
      size = int.from_bytes(self.path.read_bytes()[:8], 'little')
      self.assertEqual(size % 8, 0)

  def test_the_hash_is_that_of_the_file(self):
    made = arrays()
    digest = save(self.path, made)
    expected = hashlib.sha256(self.path.read_bytes()).hexdigest()
    self.assertEqual(digest, expected)

  def test_rows_and_blocks_are_parts_of_the_tensor(self):
    made = {'w': np.arange(35, dtype=np.float32).reshape(7, 5)}
    save(self.path, made)
    tensor = read_header(self.path)[0]['w']
    with (
      Files() as files,
      mock.patch.object(safetensors_file, 'BLOCK_BYTES', 32),
    ):
      np.testing.assert_array_equal(files.rows(tensor, 2, 6), made['w'][2:6])
      self.assertEqual(files.bytes_read, 4 * 5 * 4)
      parts = [bytes(block) for block in files.blocks(tensor)]
    self.assertEqual([len(part) for part in parts], [32, 32, 32, 32, 12])
    self.assertEqual(b''.join(parts), made['w'].tobytes())

  def test_threads_share_one_descriptor_per_file_and_count_every_byte(self):
    made = {'w': np.arange(4096, dtype=np.float32).reshape(64, 64)}
    save(self.path, made)
    tensor = read_header(self.path)[0]['w']
    before = len(os.listdir('/proc/self/fd'))
    with Files() as files:

      def read():
        for row in range(64):
          files.rows(tensor, row, row + 1)

      threads = [threading.Thread(target=read) for _ in range(8)]
      for thread in threads:
        thread.start()
      for thread in threads:
        thread.join()
      self.assertEqual(files.bytes_read, 8 * made['w'].nbytes)
      self.assertLen(os.listdir('/proc/self/fd'), before + 1)
    self.assertLen(os.listdir('/proc/self/fd'), before)


def _header(**tensors) -> bytes:
  return json.dumps(tensors).encode()


def _one(dtype='F32', shape=(2,), offsets=(0, 8)) -> bytes:
  return _header(weight=published.entry(dtype, shape, offsets))


_W = published.entry('F32', (2,), (0, 8))
_TEXT = json.dumps(_W)
# (name, header, data, what the refusal says)
HOSTILE = (
  ('empty_header', b'', b'', 'no valid JSON'),
  ('no_utf8', b'{"\xff\xfe": 1}', b'', 'no valid JSON'),
  ('no_json', b'{"weight": ', b'', 'no valid JSON'),
  ('python_literal', b"{'weight': 1}", b'', 'no valid JSON'),
  ('deep_list', b'[' * 100_000, b'', 'no valid JSON'),
  ('deep_object', b'{"a":' * 100_000, b'', 'no valid JSON'),
  ('a_list', b'[]', b'', 'no JSON object'),
  ('a_number', b'7', b'', 'no JSON object'),
  ('null', b'null', b'', 'no JSON object'),
  (
    'key_twice',
    f'{{"weight": {_TEXT}, "weight": {_TEXT}}}'.encode(),
    bytes(8),
    "lists 'weight' twice",
  ),
  (
    'key_twice_escaped',
    f'{{"weight": {_TEXT}, "w\\u0065ight": {_TEXT}}}'.encode(),
    bytes(8),
    "lists 'weight' twice",
  ),
  (
    'field_twice',
    b'{"weight": {"dtype": "F32", "dtype": "BF16", "shape": [2], '
    b'"data_offsets": [0, 8]}}',
    bytes(8),
    "lists 'dtype' twice",
  ),
  (
    'metadata_twice',
    b'{"__metadata__": {"a": "1", "a": "2"}}',
    b'',
    "lists 'a' twice",
  ),
  ('metadata_list', b'{"__metadata__": []}', b'', '__metadata__ must map'),
  ('metadata_int', b'{"__metadata__": {"a": 1}}', b'', '__metadata__ must map'),
  ('metadata_null', b'{"__metadata__": null}', b'', '__metadata__ must map'),
  ('entry_list', b'{"weight": []}', b'', "'weight' has other fields"),
  ('entry_null', b'{"weight": null}', b'', "'weight' has other fields"),
  ('no_dtype', b'{"weight": {"shape": []}}', b'', "'weight' has other fields"),
  (
    'a_field_more',
    _header(weight=_W | {'stride': [1]}),
    bytes(8),
    "'weight' has other fields",
  ),
  ('dtype_unknown', _one('F31'), bytes(8), "'weight' has the unknown dtype"),
  ('dtype_lower', _one('f32'), bytes(8), "'weight' has the unknown dtype"),
  ('dtype_number', _one(32), bytes(8), "'weight' has the unknown dtype 32"),
  ('dtype_list', _one(['F32']), bytes(8), "'weight' has the unknown dtype"),
  ('dtype_long', _one('F' * 10**6), bytes(8), "'weight' has the unknown dtype"),
  ('negative', _one(shape=(-2,)), bytes(8), "'weight' has a shape or offsets"),
  ('two_negative', _one(shape=(-2, -1)), bytes(8), "'weight' has a shape or"),
  ('bool', _one(shape=(True, 2)), bytes(8), "'weight' has a shape or offsets"),
  ('float', _one(shape=(2.0,)), bytes(8), "'weight' has a shape or offsets"),
  ('text', _one(shape='2'), bytes(8), "'weight' has a shape or offsets"),
  ('null_size', _one(shape=(None,)), bytes(8), "'weight' has a shape or"),
  ('huge', _one(shape=(2**64 + 2,)), bytes(8), "'weight' has a shape or"),
  (
    'overflow',
    _one(shape=(2**62, 4, 2)),
    bytes(8),
    "'weight' of F32 .* takes .* bytes, its offsets span 8",
  ),
  (
    'digits',
    b'{"weight": {"dtype": "F32", "shape": [%s, %s], "data_offsets": [0, 8]}}'
    % ((b'9' * 4000,) * 2),
    bytes(8),
    "'weight' has a shape or offsets",
  ),
  (
    'more_digits',
    b'{"weight": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 8]}}'
    % (b'9' * 5000),
    bytes(8),
    'no valid JSON',
  ),
  (
    'many_axes',
    _one(shape=[2**62] * 100_000),
    bytes(8),
    "'weight' has a shape or offsets",
  ),
  (
    'reversed',
    _one(offsets=(8, 0)),
    bytes(8),
    "'weight' of F32 .* offsets span -8",
  ),
  ('negative_offset', _one(offsets=(-8, 0)), bytes(8), "'weight' has a shape"),
  ('float_offset', _one(offsets=(0.0, 8)), bytes(8), "'weight' has a shape"),
  ('one_offset', _one(offsets=(0,)), bytes(8), "'weight' has a shape"),
  ('three_offsets', _one(offsets=(0, 8, 8)), bytes(8), "'weight' has a shape"),
  ('shape_too_large', _one(shape=(3,)), bytes(8), 'takes 12 bytes'),
  ('dtype_too_small', _one('BF16'), bytes(8), 'takes 4 bytes'),
  ('hole_before', _one(offsets=(4, 12)), bytes(12), "a hole before .*'weight'"),
  (
    'hole_between',
    _header(a=_W, weight=published.entry('F32', (2,), (12, 20))),
    bytes(20),
    "a hole before tensor 'weight'",
  ),
  (
    'overlap',
    _header(a=_W, weight=published.entry('F32', (2,), (4, 12))),
    bytes(12),
    "bytes shared by tensor 'weight'",
  ),
  ('same_bytes', _header(a=_W, weight=_W), bytes(8), "shared by .*'weight'"),
  ('trailing', _one(), bytes(9), 'has bytes that belong to no tensor'),
  ('no_tensor_but_data', b'{}', bytes(8), 'has bytes that belong to no tensor'),
  ('cut_short', _one(), bytes(7), 'is cut short'),
  (
    'no_values_of_huge_size',
    _one(shape=(0, 2**62, 2**62), offsets=(0, 8)),
    bytes(8),
    "'weight' of F32 .* takes 0 bytes",
  ),
)
BAD_NAMES = (
  '../../x',
  '/abs',
  'a/b',
  'a\\b',
  'a\0b',
  '',
  'a b',
  'a\nb',
  'weight\n',
  'gewicht\u00e4',
  '\u202eweight',
  '\ud800',
  'x' * 513,
)


class OpenFilesTest(FileCase):
  """However many files there are, few are open."""

  def setUp(self):
    super().setUp()
    self.tensors = []
    for number in range(200):
      path = self.folder / f'{number}.safetensors'
      values = np.full((3,), number, np.float32)
      published.write_file(path, {'w': values})
      self.tensors.append(read_header(path)[0]['w'])

  def open_here(self) -> int:
    """Open files of the folder."""
    links = []
    for name in os.listdir('/proc/self/fd'):
      with contextlib.suppress(OSError):
        links.append(os.readlink(f'/proc/self/fd/{name}'))
    return sum(link.startswith(str(self.folder)) for link in links)

  def test_a_bounded_number_stays_open_and_all_are_read_right(self):
    with Files() as files, ThreadPoolExecutor(8) as pool:
      for _ in range(3):
        rows = pool.map(lambda t: files.rows(t, 0, 3), self.tensors)
        for number, row in enumerate(rows):
          np.testing.assert_array_equal(row, number)
      self.assertBetween(self.open_here(), 8, 64 + 8)
    self.assertEqual(self.open_here(), 0)

  def test_a_file_in_use_is_not_closed(self):
    with Files() as files, files._reading(self.tensors[0].file) as descriptor:
      for tensor in self.tensors:
        files.rows(tensor, 0, 3)
      self.assertNotEmpty(os.pread(descriptor, 8, 0))

  def test_under_a_low_limit_fewer_are_open(self):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = max(map(int, os.listdir('/proc/self/fd'))) + 4
    with Files() as files:
      try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, limits[1]))
        for number, tensor in enumerate(self.tensors):
          row = files.rows(tensor, 0, 3)
          np.testing.assert_array_equal(row, number)
      finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

  def test_a_limit_that_is_reached_is_named_with_the_way_to_raise_it(self):
    error = OSError(errno.EMFILE, 'Too many open files')
    with (
      mock.patch.object(os, 'open', side_effect=error),
      Files() as files,
      self.assertRaisesRegex(StorageError, r'limit of \d+ with `ulimit -n`'),
    ):
      files.rows(self.tensors[0], 0, 3)


class HostileHeaderTest(FileCase):
  def refused(self) -> str:
    start = time.process_time()
    with self.assertRaises(StorageError) as caught:
      read_header(self.path)
    self.assertLess(time.process_time() - start, 2)
    message = str(caught.exception)
    self.assertIn(str(self.path), message)
    self.assertLen(message.splitlines(), 1)
    self.assertLess(len(message), len(str(self.path)) + 1000)
    message.encode()  # Can be printed.
    return message

  @parameterized.named_parameters(*HOSTILE)
  def test_a_header_that_lies_is_refused(self, header, data, message):
    published.write_raw(self.path, header, data)
    self.assertRegex(self.refused(), message)

  @parameterized.parameters(*BAD_NAMES)
  def test_a_name_that_is_no_name_is_refused(self, name):
    published.write_raw(self.path, _header(**{name: _W}), bytes(8))
    message = self.refused()
    self.assertIn('has a name of other characters', message)
    self.assertIn(f'tensor {name[:80]!r}', message)

  @parameterized.parameters(
    b'',
    b'{}',
    (2**63).to_bytes(8, 'little') + b'{}',
    (2**64 - 1).to_bytes(8, 'little') + b'{}',
    (100_000_001).to_bytes(8, 'little') + b'{}',
    (3).to_bytes(8, 'little') + b'{}',
    (2).to_bytes(7, 'little'),
  )
  def test_a_length_that_lies_is_refused(self, content):
    self.path.write_bytes(content)
    self.assertIn('is no safetensors file, or is cut short', self.refused())

  def test_every_truncation_of_a_file_is_refused(self):
    published.write_file(self.path, {'a': np.arange(6, dtype=np.float32)})
    whole = self.path.read_bytes()
    for size in range(len(whole)):
      self.path.write_bytes(whole[:size])
      self.refused()

  def test_any_changed_byte_of_a_header_is_refused_or_read(self):
    made = {'a': np.arange(6, dtype=np.float32), 'b': np.zeros((2, 3), BF16)}
    published.write_file(self.path, made)
    whole = self.path.read_bytes()
    end = len(whole) - sum(array.nbytes for array in made.values())
    rng = np.random.default_rng(0)
    for at in range(end):
      broken = bytearray(whole)
      broken[at] = rng.integers(256)
      self.path.write_bytes(broken)
      try:
        read_header(self.path)
      except StorageError as error:
        self.assertLen(str(error).splitlines(), 1)

  def test_a_key_twice_at_the_end_of_many_is_found_at_once(self):
    many = ''.join(f'"k{i}":0,' for i in range(300_000))
    published.write_raw(self.path, f'{{{many}"k1":0}}'.encode())
    self.assertIn("lists 'k1' twice", self.refused())

  def test_no_values_of_a_huge_size_are_no_bytes(self):
    shape = (0, 2**62, 2**62)
    published.write_raw(self.path, _one(shape=shape, offsets=(0, 0)))
    tensors, _ = read_header(self.path)
    self.assertEqual(tensors['weight'].num_bytes, 0)
    with Files() as files:
      self.assertEmpty(list(files.blocks(tensors['weight'])))

  @parameterized.parameters('folder', 'missing')
  def test_what_is_no_file_is_refused(self, kind):
    if kind == 'folder':
      self.path.mkdir()
    self.assertIn('can not be read', self.refused())

  def test_a_file_cut_short_after_its_header_was_read_is_refused(self):
    published.write_file(self.path, {'w': np.zeros((4, 4), np.float32)})
    tensor = read_header(self.path)[0]['w']
    os.truncate(self.path, self.path.stat().st_size - 1)
    with Files() as files, self.assertRaisesRegex(StorageError, "'w'"):
      files.rows(tensor, 0, 4)

  def test_a_file_gone_after_its_header_was_read_is_refused(self):
    published.write_file(self.path, {'w': np.zeros((4, 4), np.float32)})
    tensor = read_header(self.path)[0]['w']
    self.path.unlink()
    with Files() as files, self.assertRaisesRegex(StorageError, 'No such file'):
      files.rows(tensor, 0, 4)


class CopyTest(FileCase):
  """Tensors of other files, with a hash and without."""

  def setUp(self):
    super().setUp()
    self.made = arrays() | {'large': np.arange(5000, dtype=np.float32)}
    self.source = self.folder / 'source.safetensors'
    save(self.source, self.made)
    self.enter_context(mock.patch.object(safetensors_file, 'BLOCK_BYTES', 4096))

  def copy(self, hashed: bool) -> str:
    tensors, _ = read_header(self.source)
    with Files() as files:
      digest = write(
        self.path, entries(self.made), tensors.values(), {}, files, hashed
      )
      total = sum(array.nbytes for array in self.made.values())
      self.assertEqual(files.bytes_read, total)
    commit(self.path)
    return digest

  @parameterized.parameters(True, False)
  def test_copied_tensors_are_the_same_bits(self, hashed):
    digest = self.copy(hashed)
    self.assertEmpty(
      published.differences(published.read_file(self.path), self.made)
    )
    expected = hashlib.sha256(self.path.read_bytes()).hexdigest()
    self.assertEqual(digest, expected if hashed else '')

  @parameterized.parameters(True, False)
  def test_a_source_that_is_cut_short_leaves_no_file(self, hashed):
    tensors, _ = read_header(self.source)
    os.truncate(self.source, self.source.stat().st_size - 1)
    with Files() as files, self.assertRaisesRegex(StorageError, "'large'"):
      write(self.path, entries(self.made), tensors.values(), {}, files, hashed)
    self.assertEqual(os.listdir(self.folder), [self.source.name])


class FailingWriteTest(FileCase):
  def setUp(self):
    super().setUp()
    self.made = {f'w{i}': np.zeros(100, np.float32) for i in range(4)}

  def write(self, source=None):
    parts = blocks(self.made) if source is None else source
    write(self.path, entries(self.made), parts, {})
    self.assertEqual(os.listdir(self.folder)[0], f'{self.path.name}.tmp')
    commit(self.path)

  def test_a_full_disk_leaves_no_file(self):
    real, calls = os.write, []

    def full(descriptor, block):
      calls.append(len(block))
      if len(calls) == 3:
        real(descriptor, block[:7])
        raise OSError(errno.ENOSPC, 'No space left on device')
      return real(descriptor, block)

    with (
      mock.patch.object(os, 'write', full),
      self.assertRaisesRegex(
        StorageError, 'No space left on device; make room'
      ),
    ):
      self.write()
    self.assertEmpty(os.listdir(self.folder))

  def test_a_disk_that_takes_a_little_at_a_time_gets_it_all(self):
    real = os.write
    with mock.patch.object(os, 'write', lambda fd, b: real(fd, b[:7])):
      self.write()
    self.assertEmpty(
      published.differences(published.read_file(self.path), self.made)
    )

  @parameterized.parameters('fsync', 'replace')
  def test_a_disk_that_fails_at_the_end_leaves_no_file(self, call):
    error = OSError(errno.EIO, 'Input/output error')
    with (
      mock.patch.object(os, call, side_effect=error),
      self.assertRaisesRegex(StorageError, 'Input/output error'),
    ):
      self.write()
    self.assertEmpty(os.listdir(self.folder))

  @parameterized.parameters(StorageError('the source'), KeyboardInterrupt())
  def test_a_source_that_fails_leaves_no_file(self, error):
    def source():
      yield from blocks(self.made)[:2]
      raise error

    with self.assertRaises(type(error)):
      self.write(source())
    self.assertEmpty(os.listdir(self.folder))

  def test_too_few_bytes_leave_no_file(self):
    with self.assertRaisesRegex(StorageError, 'bytes written, not'):
      self.write(blocks(self.made)[:3])
    self.assertEmpty(os.listdir(self.folder))

  def test_an_older_file_stays_as_it_was(self):
    save(self.path, self.made)
    before = self.path.read_bytes()
    with self.assertRaises(StorageError):
      write(self.path, entries(self.made), blocks(self.made)[:3], {})
    self.assertEqual(self.path.read_bytes(), before)
    self.assertEqual(os.listdir(self.folder), [self.path.name])

  def test_a_limit_on_file_size_is_one_clear_error(self):
    code = (
      'import pathlib, resource, sys\n'
      'from seekax.storage.safetensors_file import write\n'
      'from seekax.storage.safetensors_header import Entry\n'
      'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n'
      'data = [memoryview(bytes(400_000))]\n'
      'try:\n'
      '  write(pathlib.Path(sys.argv[1]), [Entry("w", "F32", (100_000,))],'
      ' data, {})\n'
      'except ValueError as error:\n'
      '  print(type(error).__name__, error)\n'
    )
    run = subprocess.run(
      [sys.executable, '-c', code, str(self.path)],
      capture_output=True,
      text=True,
      check=True,
    )
    self.assertIn(f'StorageError {self.path} can not be written', run.stdout)
    self.assertIn('File too large', run.stdout)
    self.assertEmpty(os.listdir(self.folder))

  def test_a_killed_writer_leaves_nothing_under_the_final_name(self):
    code = (
      'import os, pathlib, signal, sys\n'
      'from seekax.storage.safetensors_file import write\n'
      'from seekax.storage.safetensors_header import Entry\n'
      'def source():\n'
      '  yield memoryview(bytes(200))\n'
      '  os.kill(os.getpid(), signal.SIGKILL)\n'
      'write(pathlib.Path(sys.argv[1]), [Entry("w", "F32", (100,))],'
      ' source(), {})\n'
    )
    run = subprocess.run(
      [sys.executable, '-c', code, str(self.path)], check=False
    )
    self.assertEqual(run.returncode, -signal.SIGKILL)
    self.assertEqual(os.listdir(self.folder), [f'{self.path.name}.tmp'])
    self.write()
    self.assertEqual(os.listdir(self.folder), [self.path.name])


if __name__ == '__main__':
  absltest.main()
