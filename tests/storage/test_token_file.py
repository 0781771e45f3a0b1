"""Laws of token ids in a .npy file: no header is believed."""

import io
import os
import pathlib
import time
import tracemalloc

from absl.testing import absltest, parameterized
import numpy as np

from seekax.configuration.errors import InputError
from seekax.storage.token_file import read_token_ids


def header(text: str, version: int = 1) -> bytes:
  data = text.encode('latin1')
  size = {1: 2, 2: 4, 3: 4}[version]
  return (
    b'\x93NUMPY'
    + bytes([version, 0])
    + len(data).to_bytes(size, 'little')
    + data
  )


def described(shape: str, descr: str = "'<i4'", order: str = 'False') -> str:
  return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


class TokenFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'ids.npy'

  @parameterized.product(
    dtype=('i1', 'u1', '<i4', '>i4', '<u2', '<i8', '>u8'),
    order=('C', 'F'),
  )
  def test_what_numpy_writes_is_read(self, dtype, order):
    ids = np.asarray(np.arange(15).reshape(3, 5), dtype, order=order)
    np.save(self.path, ids)
    found = read_token_ids(self.path)
    np.testing.assert_array_equal(found, ids)
    self.assertTrue(found.dtype.isnative)

  @parameterized.parameters((2, 0), (3, 0))
  def test_newer_versions_of_the_format_are_read(self, *version):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ones((2, 3), np.int32), version)
    self.path.write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(read_token_ids(self.path), 1)

  @parameterized.parameters(
    (described(f'({2**33}, 1)'), 'its header promises 34,359,738,368 bytes'),
    (described(f'({10**30}, 1)'), 'integers .B, L. are wanted'),
    (described('(' + '9' * 900 + ', 1)'), 'integers .B, L. are wanted'),
    (described('(-1, 8)'), 'integers .B, L. are wanted'),
    (described('(0, 8)'), 'integers .B, L. are wanted'),
    (described('(8,)'), 'integers .B, L. are wanted'),
    (described('[1, 8]'), 'integers .B, L. are wanted'),
    (described('(True, 8)'), 'integers .B, L. are wanted'),
    (described('(1, 7)'), 'promises 28 bytes of int32 .1, 7., 32 are there'),
    (described('(1, 8)', "'<f4'"), "'<f4' .1, 8.; integers"),
    (described('(1, 8)', "'|O'"), 'integers .B, L. are wanted'),
    (described('(1, 8)', "[('a', '<i4')]"), 'integers .B, L. are wanted'),
    (described('(1, 8)', "'\x1b[2J\x00'"), 'no .npy array|integers'),
    (described('(1, 8)', order='2'), 'integers .B, L. are wanted'),
    ('[' * 900, 'its header is broken'),
    ('[' * 9000, 'its header should take 9,000 bytes'),
    ("{'descr': '<i4'}", 'lacks a field'),
    ('__import__("os").system("true")', 'its header is broken'),
    ('', 'its header is broken'),
  )
  def test_a_header_that_lies_is_refused_before_it_costs(self, text, words):
    self.path.write_bytes(header(text) + bytes(32))
    tracemalloc.start()
    self.addCleanup(tracemalloc.stop)
    start = time.process_time()
    with self.assertRaisesRegex(InputError, words) as caught:
      read_token_ids(self.path, '--tokens')
    self.assertLess(time.process_time() - start, 2)
    self.assertLess(tracemalloc.get_traced_memory()[1], 10_000_000)
    self.assertStartsWith(str(caught.exception), f'--tokens={self.path}')
    self.assertLess(len(str(caught.exception)), 500)
    self.assertTrue(str(caught.exception).isprintable())

  @parameterized.parameters(
    b'',
    b'x',
    b'PK\x03\x04',
    b'\x93NUMPY',
    b'\x93NUMPY\x01\x00',
    b'\x93NUMPY\x09\x00' + bytes(200),
    b'\x80\x04]\x94.',
  )
  def test_another_file_is_refused(self, content):
    self.path.write_bytes(content)
    with self.assertRaisesRegex(InputError, 'is no .npy array'):
      read_token_ids(self.path)

  def test_what_is_no_file_is_refused_at_once(self):
    os.mkfifo(self.path)
    for path in (self.path, '/dev/zero', self.path.parent):
      with self.assertRaisesRegex(InputError, 'not a file'):
        read_token_ids(path)

  def test_gigabytes_of_holes_are_not_read(self):
    self.path.write_bytes(header(described('(1, 1000000000)')))
    os.truncate(self.path, self.path.stat().st_size + 4 * 10**9)
    with self.assertRaisesRegex(InputError, 'more than token ids may have'):
      read_token_ids(self.path)


if __name__ == '__main__':
  absltest.main()
