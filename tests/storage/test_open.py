import pathlib

from absl.testing import absltest

import runs
from seekax import config as config_lib
from seekax.storage import checkpoint
from seekax.storage import open as open_lib
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import StorageError
from seekax.training.state import init_state, to_parts


class OpenTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)

  def write_run(self, config):
    workdir_lib.write_run(self.workdir, {'config': config_lib.to_dict(config)})

  def test_a_checkpoint_that_is_not_there_is_refused(self):
    with self.assertRaisesRegex(StorageError, 'does not exist'):
      open_lib.open_checkpoint(str(self.workdir / 'nowhere'))

  def test_a_run_without_a_finished_checkpoint_says_how_to_go_on(self):
    self.write_run(runs.small_config(self.workdir))
    with self.assertRaisesRegex(StorageError, 'train on with: seekax train'):
      open_lib.open_checkpoint(str(self.workdir))

  def test_the_newest_proven_weights_are_opened_without_the_optimizer(self):
    config = runs.small_config(self.workdir)
    self.write_run(config)
    state = init_state(config)
    folder = self.workdir / workdir_lib.CHECKPOINTS
    for step in (3, 5, 7):
      checkpoint.save(folder, step, to_parts(state), {})
    (folder / '7.sha256').unlink()
    opened = open_lib.open_checkpoint(str(self.workdir))
    self.assertEqual(opened.step, 5)
    self.assertEqual(opened.config, config)
    self.assertEqual(
      checkpoint.state_hash(opened.params), checkpoint.state_hash(state.params)
    )
    with self.assertRaisesRegex(StorageError, 'has no tokenizer.json'):
      opened.tokenizer()


if __name__ == '__main__':
  absltest.main()
