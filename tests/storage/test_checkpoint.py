import contextlib
import os
import pathlib
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from seekax.storage import checkpoint, manifest
from seekax.storage.manifest import StorageError


def parts(value: float = 1.0):
  return {
    'weights': {'a': {'w': jnp.full((3, 2), value, jnp.bfloat16)}, 'b': {}},
    'optimizer': {'step': jnp.asarray(5, jnp.int32), 'm': jnp.arange(4.0)},
  }


class CheckpointTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / 'checkpoints'
    self.abstract = jax.eval_shape(parts)

  def save(self, step, value=1.0):
    checkpoint.save(self.folder, step, parts(value), {'data': {'at': [step]}})

  def test_restores_what_was_saved_bit_for_bit(self):
    self.save(5)
    state, progress = checkpoint.restore(self.folder, 5, self.abstract)
    self.assertEqual(
      checkpoint.state_hash(state), checkpoint.state_hash(parts())
    )
    self.assertEqual(progress, {'data': {'at': [5]}})

  def test_a_relative_folder_serves_as_well(self):
    self.enter_context(contextlib.chdir(self.folder.parent))
    self.folder = pathlib.Path('checkpoints')
    self.save(5)
    state, _ = checkpoint.restore(self.folder, 5, self.abstract)
    self.assertEqual(
      checkpoint.state_hash(state), checkpoint.state_hash(parts())
    )

  def test_without_room_nothing_is_begun(self):
    self.save(5)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts()))
    for free, enough in ((size - 1, False), (size, True)):
      usage = mock.Mock(return_value=mock.Mock(free=free))
      with mock.patch.object(checkpoint.shutil, 'disk_usage', usage):
        if enough:
          self.save(6)
        else:
          with self.assertRaisesRegex(StorageError, 'make room'):
            self.save(6)
          self.assertFalse((self.folder / '6').exists())
    self.assertEqual(checkpoint.proven_steps(self.folder), [5, 6])

  def test_a_part_restores_alone(self):
    self.save(5)
    state, _ = checkpoint.restore(
      self.folder, 5, {'weights': self.abstract['weights']}
    )
    self.assertEqual(list(state), ['weights'])

  def test_a_flipped_bit_in_array_data_is_refused(self):
    self.save(5)
    data = [p for p in (self.folder / '5').rglob('d/*') if p.is_file()]
    broken = bytearray(data[0].read_bytes())
    broken[-1] ^= 1
    data[0].write_bytes(broken)
    with self.assertRaisesRegex(StorageError, data[0].name):
      checkpoint.restore(self.folder, 5, self.abstract)

  def test_weights_that_are_no_numbers_are_named_by_every_load(self):
    self.save(5, value=float('nan'))
    where = r'weights/a/w holds nan at \[0, 0\]'
    with self.assertRaisesRegex(StorageError, where):
      checkpoint.restore(self.folder, 5, self.abstract)
    weights = {'a': self.abstract['weights']['a']}
    for load in (checkpoint.restore_some, checkpoint.check_numbers):
      with self.assertRaisesRegex(StorageError, where):
        load(self.folder, 5, 'weights', weights)
    self.save(6)
    checkpoint.check_numbers(self.folder, 6, 'weights', weights)

  def test_numbers_are_looked_at_in_parts_that_fit_into_memory(self):
    self.save(5)
    with (
      mock.patch.object(checkpoint, '_CHECKED_BYTES', 1),
      mock.patch.object(
        checkpoint, 'restore_some', side_effect=checkpoint.restore_some
      ) as read,
    ):
      optimizer = self.abstract['optimizer']
      checkpoint.check_numbers(self.folder, 5, 'optimizer', optimizer)
    self.assertEqual(
      [list(call.args[3]) for call in read.mock_calls], [['m'], ['step']]
    )

  def test_a_stray_file_is_to_be_deleted_and_costs_no_step(self):
    self.save(4)
    self.save(5)
    stray = self.folder / '5' / 'notes.txt'
    stray.touch()
    with self.assertRaisesRegex(StorageError, 'notes.txt.*delete it') as caught:
      checkpoint.restore(self.folder, 5, self.abstract)
    self.assertNotIn('restore', str(caught.exception))
    stray.rename(self.folder / '5' / '.DS_Store')
    with self.assertLogs('absl', 'WARNING'):
      checkpoint.restore(self.folder, 5, self.abstract)

  def test_metadata_of_gigabytes_are_not_read(self):
    self.save(5)
    path = self.folder / '5' / '_CHECKPOINT_METADATA'
    os.truncate(path, 40 << 30)
    with self.assertRaisesRegex(StorageError, 'metadata of a checkpoint may'):
      checkpoint.restore(self.folder, 5, self.abstract)

  def test_forged_files_that_match_their_manifest_end_in_one_line(self):
    self.save(5)
    for path in sorted((self.folder / '5').rglob('*')):
      if not path.is_file():
        continue
      whole = path.read_bytes()
      for forged in (b'', b'\x1b[2J' * 5000, whole[: len(whole) // 2]):
        path.write_bytes(forged)
        manifest.write_manifest(self.folder / '5', self.folder / '5.sha256')
        try:
          checkpoint.restore(self.folder, 5, self.abstract)
        except StorageError as error:
          self.assertLess(len(str(error)), 500)
          self.assertTrue(str(error).isprintable(), msg=str(error))
      path.write_bytes(whole)

  def test_a_step_without_manifest_is_skipped_and_kept(self):
    self.save(5)
    self.save(6)
    (self.folder / '6.sha256').unlink()
    self.assertEqual(checkpoint.newest(self.folder), 5)
    checkpoint.clean(self.folder, keep=1)
    self.assertTrue((self.folder / '6').is_dir())

  def test_an_interrupted_step_is_saved_anew_and_then_cleaned(self):
    for _ in range(2):
      self.save(6)
      (self.folder / '6.sha256').unlink()
    self.save(6, value=2.0)
    checkpoint.clean(self.folder, keep=1)
    state, _ = checkpoint.restore(self.folder, 6, self.abstract)
    self.assertEqual(float(state['weights']['a']['w'][0, 0]), 2.0)
    self.assertEqual(
      sorted(p.name for p in self.folder.iterdir()), ['6', '6.sha256']
    )

  def test_what_orbax_did_not_write_is_neither_deleted_nor_replaced(self):
    self.folder.mkdir()
    for name in ('3', '7'):
      (self.folder / name).mkdir()
      (self.folder / name / 'mine.txt').write_text('mine')
    (self.folder / '4').write_text('a file')
    with self.assertRaisesRegex(StorageError, 'is in the way of a checkpoint'):
      self.save(7)
    for step in (8, 9):
      self.save(step)
    checkpoint.clean(self.folder, keep=1)
    self.assertEqual(
      sorted(path.name for path in self.folder.iterdir()),
      ['3', '4', '7', '9', '9.sha256'],
    )
    self.assertEqual((self.folder / '3' / 'mine.txt').read_text(), 'mine')

  def test_only_the_newest_are_kept(self):
    for step in (1, 2, 3):
      self.save(step)
    checkpoint.clean(self.folder, keep=2)
    self.assertEqual(checkpoint.proven_steps(self.folder), [2, 3])

  def test_another_shape_is_refused_in_one_line(self):
    self.save(5)
    other = jax.tree.map(lambda x: x, self.abstract)
    other['weights']['a']['w'] = jax.ShapeDtypeStruct((3, 3), jnp.bfloat16)
    with self.assertRaisesRegex(StorageError, r'loaded: .*\(3, 3\).*\(3, 2\)'):
      checkpoint.restore(self.folder, 5, other)

  def test_hash_sees_path_dtype_shape_and_bytes(self):
    x = np.arange(4, dtype=np.int32)
    hashes = {
      checkpoint.state_hash(tree)
      for tree in (
        {'a': x},
        {'b': x},
        {'a': x.view(np.float32)},
        {'a': x.reshape(2, 2)},
        {'a': x + 1},
      )
    }
    self.assertLen(hashes, 5)
    self.assertEqual(
      checkpoint.state_hash({'a': x, 'b': x}),
      checkpoint.state_hash({'b': x, 'a': x}),
    )


if __name__ == '__main__':
  absltest.main()
