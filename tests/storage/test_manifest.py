import os
import pathlib
import random
import subprocess

from absl.testing import absltest

from seekax import files
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
      with self.assertRaisesRegex(StorageError, 'cut short|is no SHA-256'):
        manifest_lib.verify_manifest(self.folder, self.manifest)

  def test_a_file_too_much_is_to_be_deleted(self):
    (self.folder / 'd' / 'notes').touch()
    with self.assertRaisesRegex(
      manifest_lib.StrayFileError, 'd/notes is not listed .* delete it'
    ):
      manifest_lib.verify_manifest(self.folder, self.manifest)

  def test_a_damaged_file_is_named_before_one_too_much(self):
    (self.folder / 'notes').touch()
    self.data.write_bytes(b'x')
    with self.assertRaisesRegex(StorageError, 'd/array does not match'):
      manifest_lib.verify_manifest(self.folder, self.manifest)

  def test_what_systems_leave_is_passed_over_with_a_line(self):
    names = ('.DS_Store', '._array', 'Thumbs.db', 'desktop.ini')
    for name in names:
      (self.folder / 'd' / name).write_bytes(b'x')
    with self.assertLogs('absl', 'WARNING') as logs:
      manifest_lib.verify_manifest(self.folder, self.manifest)
    self.assertLen(logs.output, len(names))
    before = self.manifest.read_text()
    manifest_lib.write_manifest(self.folder, self.manifest)
    self.assertEqual(self.manifest.read_text(), before)

  def test_a_manifest_names_files_of_its_folder_alone(self):
    whole = self.manifest.read_text()
    outside = self.root / 'secret'
    outside.write_text('x')
    digest = manifest_lib.file_hash(outside)
    for name in (
      '7/../secret',
      '../secret',
      str(outside),
      'secret',
      '8/x',
      '7',
    ):
      self.manifest.write_text(f'{whole}{digest}  {name}\n')
      with self.assertRaisesRegex(StorageError, 'which is no file in'):
        manifest_lib.verify_manifest(self.folder, self.manifest)

  def test_a_link_out_of_the_folder_is_refused(self):
    moved = self.root / 'elsewhere'
    for path in (self.data, self.data.parent):
      path.rename(moved)
      path.symlink_to(moved)
      with self.assertRaisesRegex(StorageError, 'is a link to'):
        manifest_lib.verify_manifest(self.folder, self.manifest)
      path.unlink()
      moved.rename(path)
    manifest_lib.verify_manifest(self.folder, self.manifest)

  def test_pipes_folders_and_links_to_themselves_are_refused_at_once(self):
    def loop(path):
      path.symlink_to(path.name)

    for path in (self.folder / 'meta', self.manifest):
      whole = path.read_bytes()
      for make in (os.mkfifo, os.mkdir, loop):
        path.unlink()
        make(path)
        with self.assertRaisesRegex(
          StorageError, 'pipe|folder|link to itself|is missing'
        ):
          manifest_lib.verify_manifest(self.folder, self.manifest)
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(whole)

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
    files.write_atomically(path, 'a')
    files.write_atomically(path, 'b')
    self.assertEqual(path.read_text(), 'b')
    self.assertLen([n for n in os.listdir(self.root) if 'x.json' in n], 1)


if __name__ == '__main__':
  absltest.main()
