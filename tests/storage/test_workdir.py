import os
import pathlib
import subprocess
import sys
import unittest

from absl.testing import absltest

from seekax.configuration.compute import ComputeConfig
from seekax.configuration.config import Config, to_dict
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import StorageError

HOLD = """
import pathlib, sys, time
from seekax.storage import workdir
held = workdir.lock(pathlib.Path(sys.argv[1]))
print('held', flush=True)
time.sleep(60)
"""


class WorkdirTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)

  def test_a_second_process_is_refused_until_the_first_dies(self):
    with subprocess.Popen(
      [sys.executable, '-c', HOLD, str(self.workdir)], stdout=subprocess.PIPE
    ) as other:
      assert other.stdout
      self.assertEqual(other.stdout.readline(), b'held\n')
      with self.assertRaisesRegex(StorageError, 'in use by another run'):
        workdir_lib.lock(self.workdir)
      other.kill()
      other.wait()
      workdir_lib.lock(self.workdir).close()

  def test_a_path_below_a_file_is_not_writable(self):
    file = self.workdir / 'file'
    file.touch()
    with self.assertRaisesRegex(StorageError, 'is not writable'):
      workdir_lib.prepare(file / 'run')

  @unittest.skipIf(os.geteuid() == 0, 'root may write everywhere')
  def test_a_folder_without_permission_is_not_writable(self):
    self.workdir.chmod(0o500)
    self.addCleanup(self.workdir.chmod, 0o700)
    with self.assertRaisesRegex(StorageError, 'is not writable'):
      workdir_lib.prepare(self.workdir)

  def test_only_a_new_an_empty_or_a_folder_of_ours_is_taken(self):
    workdir_lib.refuse_foreign(self.workdir / 'new')
    workdir_lib.refuse_foreign(self.workdir)
    # What systems leave, and a start that was killed, are in nobody's way.
    for name in ('.DS_Store', '._x', '.lock', '.probe-7', 'run.json.tmp-7'):
      (self.workdir / name).touch()
    workdir_lib.refuse_foreign(self.workdir)
    (self.workdir / 'notes.txt').write_text('mine')
    with self.assertRaisesRegex(StorageError, "holds 'notes.txt', and no run"):
      workdir_lib.refuse_foreign(self.workdir)
    (self.workdir / 'run.json').write_text('{"config": {"mine": 1}}')
    with self.assertRaisesRegex(StorageError, 'choose a new or empty folder'):
      workdir_lib.refuse_foreign(self.workdir)
    workdir_lib.write_run(self.workdir, {'config': to_dict(Config())})
    workdir_lib.refuse_foreign(self.workdir)

  def test_a_lock_leaves_what_a_file_of_its_name_holds(self):
    (self.workdir / '.lock').write_text('mine')
    with self.assertRaisesRegex(StorageError, "holds '.lock'"):
      workdir_lib.refuse_foreign(self.workdir)
    workdir_lib.lock(self.workdir).close()
    self.assertEqual((self.workdir / '.lock').read_text(), 'mine')

  def test_a_failed_start_is_forgotten_with_the_folders_it_made(self):
    made = workdir_lib.prepare(self.workdir / 'a' / 'b')
    self.assertEqual(made, [self.workdir / 'a', self.workdir / 'a' / 'b'])
    workdir_lib.lock(made[-1]).close()
    (self.workdir / 'a' / 'theirs').touch()
    workdir_lib.forget(made[-1], made)
    self.assertEqual(
      sorted(self.workdir.rglob('*')),
      [self.workdir / 'a', self.workdir / 'a' / 'theirs'],
    )

  def test_config_comes_back_from_run_json(self):
    config = Config()
    workdir_lib.write_run(self.workdir, {'config': to_dict(config)})
    self.assertEqual(workdir_lib.read_config(self.workdir), config)

  def test_a_config_from_before_the_group_compute_is_read(self):
    now = to_dict(Config(compute=ComputeConfig(remat='full', unroll_layers=3)))
    before = {name: x for name, x in now.items() if name != 'compute'}
    before['model'] = now['model'] | now['compute']
    workdir_lib.write_run(self.workdir, {'config': before})
    self.assertEqual(to_dict(workdir_lib.read_config(self.workdir)), now)

  def test_a_key_that_is_gone_is_read_with_the_value_that_stays(self):
    before = to_dict(Config())
    before['train']['center_bias'] = False
    before['optim']['muon_rms'] = 0.2
    workdir_lib.write_run(self.workdir, {'config': before})
    self.assertEqual(workdir_lib.read_config(self.workdir), Config())
    before['train']['center_bias'] = True
    workdir_lib.write_run(self.workdir, {'config': before})
    with self.assertRaisesRegex(StorageError, 'train.center_bias'):
      workdir_lib.read_config(self.workdir)

  def test_a_folder_without_run_json_is_no_workdir(self):
    with self.assertRaisesRegex(StorageError, 'is no workdir'):
      workdir_lib.read_config(self.workdir)

  def test_a_broken_run_json_is_named(self):
    (self.workdir / 'run.json').write_text('{"config": {"modle": {}}}')
    with self.assertRaisesRegex(StorageError, "did you mean 'model'"):
      workdir_lib.read_config(self.workdir)
    (self.workdir / 'run.json').write_text('{')
    with self.assertRaisesRegex(StorageError, 'holds no valid JSON'):
      workdir_lib.read_config(self.workdir)

  def test_what_is_no_run_is_refused_in_words(self):
    path = self.workdir / 'run.json'
    for text, words in (
      ('[]', 'is no JSON object'),
      ('{}', 'has no config'),
      ('{"config": []}', 'has no config'),
      ('{"config": {"model": 3}}', "config.'model' is no group"),
      ('{"config": {"model": {"num_layers": [1]}}}', 'num_layers'),
      ('{"config": {"m\\u001b[2J": {}}}', 'unknown config group'),
      ('[' * 100_000, 'too deep'),
      (' ' * 4_000_001, '4,000,001 bytes are more than run.json may have'),
    ):
      path.write_text(text)
      with self.assertRaisesRegex(StorageError, words) as caught:
        workdir_lib.read_config(self.workdir)
      self.assertLess(len(str(caught.exception)), 500)
      self.assertTrue(str(caught.exception).isprintable())


if __name__ == '__main__':
  absltest.main()
