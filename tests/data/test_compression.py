"""The yardsticks equal the command-line tools, one document at a time."""

import shutil
import subprocess

from absl.testing import absltest, parameterized

from seekax.data import compression, sources

_TEXTS = ('def f(x):\n  return x\n' * 40, 'é' * 9, 'import os\n')
_DOCUMENTS = [sources.Document(str(n), text) for n, text in enumerate(_TEXTS)]


class CompressionTest(parameterized.TestCase):
  @parameterized.parameters(('gzip', '-9n'), ('xz', '-9e'))
  def test_bits_per_byte_equal_the_command_line_tool(self, tool, level):
    if not shutil.which(tool):
      self.skipTest(f'{tool} is not installed')
    bits = num_bytes = 0
    for text in _TEXTS:
      content = text.encode()
      ran = subprocess.run(
        [tool, level, '-c'], input=content, stdout=subprocess.PIPE, check=True
      )
      bits += 8 * len(ran.stdout)
      num_bytes += len(content)
    ours = getattr(compression.bits_per_byte(_DOCUMENTS), tool)
    # The tool may have been built on another zlib than Python's.
    self.assertAlmostEqual(ours, bits / num_bytes, delta=0.02 * ours)

  def test_documents_are_compressed_alone_and_summed(self):
    twice = compression.bits_per_byte(_DOCUMENTS * 2)
    self.assertEqual(twice, compression.bits_per_byte(_DOCUMENTS))

  def test_bytes_not_characters_are_counted(self):
    two_bytes = compression.bits_per_byte([sources.Document('a', 'é' * 5000)])
    one_byte = compression.bits_per_byte([sources.Document('a', 'e' * 5000)])
    self.assertLess(two_bytes.xz, one_byte.xz)

  @parameterized.parameters(([],), ([sources.Document('a', '')],))
  def test_nothing_to_compress_is_an_error(self, documents):
    with self.assertRaisesRegex(sources.DataError, 'no text to compress'):
      compression.bits_per_byte(documents)


if __name__ == '__main__':
  absltest.main()
