import dataclasses
import json
import os
import pathlib
import time
from unittest import mock

from absl.testing import absltest, parameterized

import published
from seekax.configuration.config import to_dict
from seekax.configuration.presets import PRESETS
from seekax.planning.parameters import count_parameters
from seekax.storage import checkpoint, names, room, safetensors_header
from seekax.storage import open as open_lib
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import StorageError
from seekax.storage.published_config import published_config
from seekax.training.state import init_state, to_parts
import short_runs


class OpenTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)

  def write_run(self, config):
    workdir_lib.write_run(self.workdir, {'config': to_dict(config)})

  def test_a_checkpoint_that_is_not_there_is_refused(self):
    with self.assertRaisesRegex(StorageError, 'does not exist'):
      open_lib.open_checkpoint(str(self.workdir / 'nowhere'))

  def test_a_run_without_a_finished_checkpoint_says_how_to_go_on(self):
    self.write_run(short_runs.small_config(self.workdir))
    with self.assertRaisesRegex(StorageError, 'train on with: seekax train'):
      open_lib.open_checkpoint(str(self.workdir))

  def test_the_newest_proven_weights_are_opened_without_the_optimizer(self):
    config = short_runs.small_config(self.workdir)
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
      checkpoint.state_hash(opened.weights.params),
      checkpoint.state_hash(state.params),
    )
    with self.assertRaisesRegex(StorageError, 'has no tokenizer.json'):
      opened.tokenizer()

  def test_sizes_that_no_machine_holds_are_refused_at_once(self):
    config = short_runs.small_config(self.workdir)
    self.write_run(config)
    state = init_state(config)
    checkpoint.save(
      self.workdir / workdir_lib.CHECKPOINTS, 3, to_parts(state), {}
    )
    for huge in (
      {'num_experts': 2 * 10**9},
      {'num_layers': 2 * 10**9},
      {'embed_dim': 10**8},
      {'vocab_size': 2**31 - 1},
    ):
      model = dataclasses.replace(config.model, **huge)
      self.write_run(dataclasses.replace(config, model=model))
      start = time.process_time()
      with self.assertRaisesRegex(StorageError, 'GB of memory'):
        open_lib.open_checkpoint(self.workdir)
      if 'num_experts' in huge or 'num_layers' in huge:
        with self.assertRaisesRegex(StorageError, 'at most 1,000,000 are read'):
          open_lib.find(self.workdir).check()
      self.assertLess(time.process_time() - start, 1)

  def test_files_of_holes_that_no_machine_holds_are_refused_at_once(self):
    huge = dataclasses.replace(published.LLAMA, vocab_size=10**8)
    slots = names.slots(huge)
    entries = [safetensors_header.Entry(s.name, 'BF16', s.shape) for s in slots]
    start = safetensors_header.header(entries, {})
    with open(self.workdir / 'model.safetensors', 'wb') as file:
      file.write(start)
      file.truncate(len(start) + sum(entry.num_bytes for entry in entries))
    fields = published_config(huge, 'bfloat16', False, False)
    (self.workdir / 'config.json').write_text(json.dumps(fields))
    open_lib.find(self.workdir).check()  # To look at, and to convert.
    with (
      mock.patch.object(room, 'host_memory', return_value=9 * 10**9),
      self.assertRaisesRegex(StorageError, 'need 9.6 GB of memory'),
    ):
      open_lib.open_checkpoint(self.workdir, 'bfloat16')


class RoomTest(parameterized.TestCase):
  @parameterized.parameters(*PRESETS)
  def test_the_limit_is_all_memory_there_is(self, name):
    model = PRESETS[name]()
    counts = count_parameters(model)
    needed = 2 * (counts.total + counts.mtp)
    with mock.patch.object(room, 'host_memory', return_value=needed):
      room.check_room(model, value_bytes=2)
      with self.assertRaisesRegex(StorageError, 'seekax plan tells'):
        room.check_room(model, value_bytes=4)
      with mock.patch.dict(os.environ, {'SEEKAX_LIMIT_FACTOR': '2'}):
        room.check_room(model, value_bytes=4)
    room.check_count(model, 'x')


if __name__ == '__main__':
  absltest.main()
