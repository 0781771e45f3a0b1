import os
import pathlib
import subprocess
import sys
from unittest import mock

from absl.testing import absltest, parameterized
import jax

from seekax.machine import compilation_cache

# Compiles a little with the cache on; argument 2 is done before that.
_PROGRAM = """
import pathlib, sys
import jax, jax.numpy as jnp
from seekax.machine import compilation_cache
compilation_cache.switch_on(sys.argv[1], lambda line: print('SAID', line))
exec(sys.argv[2])
x = jnp.arange(64.0).reshape(8, 8)
print('RESULT', float(jax.jit(lambda x: jnp.sin(x @ x).sum())(x)))
"""


class ProcessTest(parameterized.TestCase):
  """Each run is a process, since the cache is JAX's and of the process."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def run_program(self, setting='auto', before='', **more) -> tuple[str, str]:
    env = {**os.environ, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    env.pop('JAX_COMPILATION_CACHE_DIR', None)
    env |= {'XDG_CACHE_HOME': str(self.root / 'cache'), **more}
    run = subprocess.run(
      [sys.executable, '-c', _PROGRAM, str(setting), before],
      env=env,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(run.returncode, 0, msg=run.stderr)
    self.assertIn('RESULT', run.stdout)
    return run.stdout, run.stderr

  def entries(self, folder: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*-cache')}

  def test_the_second_process_finds_what_the_first_compiled(self):
    cache = self.root / 'cache' / 'seekax' / 'xla'
    cold, _ = self.run_program()
    kept = self.entries(cache)
    self.assertNotEmpty(kept)
    warm, stderr = self.run_program(JAX_EXPLAIN_CACHE_MISSES='1')
    self.assertEqual(cold, warm)
    self.assertNotIn('PERSISTENT COMPILATION CACHE MISS', stderr)
    self.assertEqual(self.entries(cache), kept)
    (folder,) = cache.iterdir()
    self.assertEqual(folder.stat().st_mode & 0o777, 0o700)

  def test_a_damaged_entry_is_compiled_anew(self):
    cold, _ = self.run_program(self.root / 'mine')
    for path in self.entries(self.root / 'mine'):
      path.write_bytes(path.read_bytes()[:100])
    again, stderr = self.run_program(self.root / 'mine')
    self.assertEqual(cold, again)
    self.assertIn('Error reading persistent compilation cache', stderr)

  def test_a_disk_that_fails_later_costs_a_warning(self):
    before = (
      'folder = pathlib.Path(jax.config.jax_compilation_cache_dir);'
      'folder.rmdir(); folder.touch()'
    )
    stdout, stderr = self.run_program(before=before)
    self.assertNotIn('SAID', stdout)
    self.assertIn('UserWarning', stderr)

  def test_off_keeps_nothing(self):
    self.run_program('')
    self.assertFalse((self.root / 'cache').exists())

  def test_a_folder_given_to_jax_stays(self):
    own = self.root / 'own'
    self.run_program(JAX_COMPILATION_CACHE_DIR=str(own))
    self.assertNotEmpty(self.entries(own))
    self.assertFalse((self.root / 'cache').exists())


class SwitchOnTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.said = []
    config = mock.MagicMock(jax_compilation_cache_dir=None)
    self.enter_context(mock.patch.object(jax, 'config', config))
    self.update = config.update

  def switch_on(self, setting) -> None:
    compilation_cache.switch_on(str(setting), self.said.append)

  def refused(self, setting, message: str) -> None:
    self.switch_on(setting)
    (line,) = self.said
    self.assertRegex(line, message)
    self.assertIn('train.compilation_cache', line)
    self.assertNotIn('\n', line)
    self.update.assert_not_called()

  def test_a_folder_that_can_not_be_made_is_a_line(self):
    (self.root / 'file').touch()
    self.refused(self.root / 'file' / 'cache', 'Not a directory')

  def test_a_folder_that_others_may_write_is_not_used(self):
    self.switch_on(self.root)
    (folder,) = self.root.iterdir()
    self.update.reset_mock()
    folder.chmod(0o777)
    self.refused(self.root, 'its entries are run as code')

  def test_a_full_disk_is_a_line(self):
    usage = mock.patch.object(
      compilation_cache.shutil, 'disk_usage', return_value=mock.Mock(free=1000)
    )
    with usage:
      self.refused(self.root, 'nearly full')

  def test_a_cpu_that_can_not_be_told_gets_no_cache(self):
    with mock.patch.object(
      compilation_cache.pathlib.Path, 'read_text', side_effect=FileNotFoundError
    ):
      self.switch_on(self.root)
    self.update.assert_not_called()
    self.assertEmpty(self.said)

  def test_the_oldest_entries_go_first(self):
    for number in range(4):
      path = self.root / f'{number}-cache'
      path.write_bytes(bytes(100))
      os.utime(path, (number, number))
    with mock.patch.object(compilation_cache, '_MAX_BYTES', 250):
      compilation_cache._remove_oldest(self.root)
    left = sorted(path.name for path in self.root.iterdir())
    self.assertEqual(left, ['2-cache', '3-cache'])


class FingerprintTest(absltest.TestCase):
  CPU = 'processor\t: 0\nmodel name\t: X\nflags\t\t: avx2\ncpu MHz\t: 2\n'

  def test_it_follows_what_code_depends_on(self):
    cpus = [
      (self.CPU, 2),
      (self.CPU, 4),
      (self.CPU.replace('avx2', 'avx2 avx512f'), 2),
      (self.CPU.replace('X', 'Y'), 2),
    ]
    prints = {compilation_cache._fingerprint(*cpu) for cpu in cpus}
    self.assertLen(prints, 4)

  def test_it_leaves_out_what_changes_by_the_hour(self):
    other = self.CPU.replace('MHz\t: 2', 'MHz\t: 3')
    more = f'{self.CPU}\n{self.CPU.replace("X", "second")}'
    prints = {
      compilation_cache._fingerprint(text, 2)
      for text in (self.CPU, other, more)
    }
    self.assertLen(prints, 1)


if __name__ == '__main__':
  absltest.main()
