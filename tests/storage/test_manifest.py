import os
import pathlib
import random
import subprocess

from absl.testing import absltest

from seekax.storage import manifest as manifest_lib
from seekax.storage.manifest import StorageError


class ManifestTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.folder = self.root / '7'
    (self.folder / 'd').mkdir(parents=True)
    self.data = self.folder / 'd' / 'array'
    self.data.write_bytes(random.Random(0).randbytes(4096))
    (self.folder / 'meta').write_text('{}')
    self.manifest = self.root / '7.sha256'
    manifest_lib.write_manifest(self.folder, self.manifest)

  def test_untouched_files_pass(self):
    manifest_lib.verify_manifest(self.folder, self.manifest)

  def test_every_flipped_bit_is_found_and_the_file_named(self):
    whole = self.data.read_bytes()
    for seed in range(40):
      at = random.Random(seed).randrange(len(whole) * 8)
      broken = bytearray(whole)
      broken[at // 8] ^= 1 << at % 8
      self.data.write_bytes(broken)
      with self.assertRaisesRegex(StorageError, 'd/array does not match'):
        manifest_lib.verify_manifest(self.folder, self.manifest)

  def test_a_missing_file_is_named(self):
    self.data.unlink()
    with self.assertRaisesRegex(StorageError, 'd/array is missing'):
      manifest_lib.verify_manifest(self.folder, self.manifest)

  def test_a_manifest_that_lists_too_little_is_refused(self):
    for text in ('', self.manifest.read_text()[:60]):
      self.manifest.write_text(text)
      with self.assertRaisesRegex(StorageError, 'is not listed|is missing'):
        manifest_lib.verify_manifest(self.folder, self.manifest)

  def test_every_flipped_bit_of_a_manifest_is_found(self):
    whole = self.manifest.read_bytes()
    for bit in range(8 * len(whole)):
      broken = bytearray(whole)
      broken[bit // 8] ^= 1 << bit % 8
      self.manifest.write_bytes(broken)
      with self.assertRaises(StorageError):
        manifest_lib.verify_manifest(self.folder, self.manifest)

  def test_sha256sum_reads_it(self):
    run = subprocess.run(
      ['sha256sum', '--check', '--quiet', self.manifest.name],
      cwd=self.root,
      check=False,
    )
    self.assertEqual(run.returncode, 0)

  def test_atomic_write_leaves_one_whole_file(self):
    path = self.root / 'x.json'
    manifest_lib.write_atomically(path, 'a')
    manifest_lib.write_atomically(path, 'b')
    self.assertEqual(path.read_text(), 'b')
    self.assertLen([n for n in os.listdir(self.root) if 'x.json' in n], 1)


if __name__ == '__main__':
  absltest.main()
