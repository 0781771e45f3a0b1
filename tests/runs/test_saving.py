"""Laws of saving beside training."""

import pathlib
import threading
from unittest import mock

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from seekax.runs.saving import Saver
from seekax.storage import checkpoint
from seekax.storage.manifest import StorageError


class SaverTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.saver = Saver(self.folder, keep=2)
    self.addCleanup(self.saver.close)

  def test_it_saves_what_was_there_and_keeps_the_newest(self):
    value = np.arange(5.0, dtype=np.float32)
    for step in (1, 2, 3):
      self.saver.start(step, {'weights': {'w': value}}, {'at': step})
      value += 1  # As a step that takes the buffers of the one before.
    self.saver.wait()
    self.assertEqual(checkpoint.proven_steps(self.folder), [2, 3])
    shapes = {'weights': {'w': jnp.zeros(5, jnp.float32)}}
    for step in (2, 3):
      parts, progress = checkpoint.restore(self.folder, step, shapes)
      expected = np.arange(5.0) + step - 1
      np.testing.assert_array_equal(parts['weights']['w'], expected)
      self.assertEqual(progress, {'at': step})

  def test_training_goes_on_meanwhile(self):
    running, may_end = threading.Event(), threading.Event()

    def slow(*unused):
      running.set()
      self.assertTrue(may_end.wait(60))

    with mock.patch.object(checkpoint, 'save', slow):
      self.saver.start(1, {'w': np.zeros(1)}, {})
      self.assertTrue(running.wait(60))  # start() has returned before the end.
      self.saver.check()
      may_end.set()
      self.saver.wait()

  def test_an_error_is_raised_by_what_is_asked_next(self):
    error = StorageError('the disk is full')
    for ask in (
      self.saver.wait,
      self.saver.check,
      lambda: self.saver.start(2, {'w': np.zeros(1)}, {}),
    ):
      with mock.patch.object(checkpoint, 'save', side_effect=error):
        self.saver.start(1, {'w': np.zeros(1)}, {})
        while not (self.saver._running and self.saver._running.done()):
          pass
      with self.assertRaisesRegex(StorageError, 'the disk is full'):
        ask()
      self.saver.wait()  # Said once.

  def test_a_proven_step_is_not_written_again(self):
    self.saver.start(1, {'w': np.zeros(1)}, {})
    self.saver.wait()
    with mock.patch.object(checkpoint, 'save') as save:
      self.saver.start(1, {'w': np.ones(1)}, {})
      self.saver.wait()
    save.assert_not_called()


if __name__ == '__main__':
  absltest.main()
