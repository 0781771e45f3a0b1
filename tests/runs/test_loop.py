import dataclasses
import json
import pathlib
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
import pytest

from seekax.configuration.config import Config
from seekax.configuration.errors import ConfigError
from seekax.runs import corpus as corpus_lib
from seekax.runs import journal, launch
from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib
from seekax.storage.manifest import StorageError
from seekax.storage.open import find, open_checkpoint
from seekax.training import schedules
from seekax.training.state import abstract_state, to_parts
import short_runs


class Stopper:
  """Asks the loop to stop after some steps."""

  def __init__(self, steps: int):
    self.left = steps

  def __call__(self) -> bool:
    self.left -= 1
    return self.left < 0


def state_hash(workdir: pathlib.Path, config: Config) -> str:
  folder = workdir / workdir_lib.CHECKPOINTS
  parts, _ = checkpoint.restore(
    folder, checkpoint.newest(folder), to_parts(abstract_state(config))
  )
  return checkpoint.state_hash(parts)


class LoopTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = pathlib.Path(absltest.FLAGS.test_tmpdir) / cls.__name__
    cls.source = short_runs.write_corpus(root / 'corpus')
    cls.config = short_runs.small_config(cls.source)
    cls.unbroken = root / 'unbroken'
    cls.unbroken.mkdir()
    cls.compiled = []
    jax.monitoring.register_event_duration_secs_listener(cls.on_event)
    try:
      cls.finished = launch.start(cls.config, {}, cls.unbroken)
    finally:
      jax.monitoring.unregister_event_duration_listener(cls.on_event)

  @classmethod
  def on_event(cls, event: str, seconds: float, **details) -> None:
    """Keeps the names of the programs that XLA compiles."""
    del seconds
    if event.endswith('backend_compile_duration'):
      cls.compiled.append(details['fun_name'])

  def new_workdir(self) -> pathlib.Path:
    return pathlib.Path(self.create_tempdir().full_path)

  def rows(self, workdir: pathlib.Path, kind: str):
    lines = (workdir / workdir_lib.METRICS).read_text().splitlines()
    return [row for row in map(json.loads, lines) if row['kind'] == kind]

  def test_step_is_compiled_once_beside_evaluations_and_checkpoints(self):
    self.assertNotEmpty(self.rows(self.unbroken, 'eval'))
    self.assertEqual(self.compiled.count('jit(_whole_step)'), 1, self.compiled)

  def test_resume_is_uninterrupted_bit_for_bit(self):
    workdir = self.new_workdir()
    for steps in (3, 2, 100):
      finished = launch.start(self.config, {}, workdir, Stopper(steps))
    self.assertTrue(finished)
    self.assertEqual(
      state_hash(workdir, self.config), state_hash(self.unbroken, self.config)
    )
    for kind, keys in (('train', ['loss', 'mtp_loss']), ('sample', ['text'])):
      for ours, theirs in zip(
        self.rows(workdir, kind), self.rows(self.unbroken, kind), strict=True
      ):
        self.assertEqual([ours[k] for k in keys], [theirs[k] for k in keys])

  def test_a_crash_after_the_last_checkpoint_repeats_the_same_steps(self):
    workdir = self.new_workdir()
    launch.start(self.config, {}, workdir, Stopper(6))
    folder = workdir / workdir_lib.CHECKPOINTS
    # As if the process had died before it could save step 6.
    (folder / '6.sha256').unlink()
    launch.start(self.config, {}, workdir)
    self.assertEqual(
      state_hash(workdir, self.config), state_hash(self.unbroken, self.config)
    )
    steps = [row['step'] for row in self.rows(workdir, 'train')]
    self.assertEqual(steps, list(range(1, 9)))
    for ours in (workdir / workdir_lib.SAMPLES).iterdir():
      theirs = self.unbroken / workdir_lib.SAMPLES / ours.name
      self.assertEqual(ours.read_text(), theirs.read_text())

  @pytest.mark.slow
  def test_a_batch_ramp_compiles_nothing_on_the_way(self):
    config = short_runs.small_config(
      self.source,
      steps=6,
      micro_batches=2,
      ramp_tokens=600,
      log_every=1,
    )
    workdir, compiled = self.new_workdir(), []

    def on_event(event, seconds, **details):
      del seconds
      if event.endswith('backend_compile_duration'):
        compiled.append(details['fun_name'])

    jax.monitoring.register_event_duration_secs_listener(on_event)
    try:
      launch.start(config, {}, workdir)
    finally:
      jax.monitoring.unregister_event_duration_listener(on_event)
    rows = self.rows(workdir, 'train')
    self.assertEqual([row['batch_tokens'] for row in rows], 5 * [128] + [256])
    self.assertEqual([row['tokens'] for row in rows][-2:], [640, 896])
    self.assertEqual(compiled.count('jit(_accumulate)'), 1, compiled)
    self.assertEqual(compiled.count('jit(_apply)'), 1, compiled)

  @pytest.mark.slow
  def test_averaged_weights_are_saved_and_go_on(self):
    optim = dataclasses.replace(self.config.optim, ema_decay=0.5, ema_every=2)
    config = dataclasses.replace(self.config, optim=optim)
    shapes = abstract_state(config).weights
    averages = []
    for stops in ((100,), (3, 2, 100)):
      workdir = self.new_workdir()
      for steps in stops:
        launch.start(config, {}, workdir, Stopper(steps))
      folder = workdir / workdir_lib.CHECKPOINTS
      parts = to_parts(abstract_state(config), shapes)
      averages.append(checkpoint.restore(folder, 8, parts)[0])
    one, other = map(checkpoint.state_hash, averages)
    self.assertEqual(one, other)
    found = find(workdir, averaged=True)
    opened = open_checkpoint(found)
    mean = averages[0]['ema']['params']['head']
    np.testing.assert_array_equal(opened.weights.params['head'], mean)
    last = averages[0]['weights']['params']['head']
    self.assertGreater(np.abs(mean - last).max(), 0)
    with self.assertRaisesRegex(StorageError, 'no averaged weights'):
      find(self.unbroken, averaged=True)

  def test_a_flipped_bit_is_named_and_the_step_before_taken_if_asked(self):
    workdir = self.new_workdir()
    launch.start(self.config, {}, workdir)
    folder = workdir / workdir_lib.CHECKPOINTS
    largest = max(
      (path for path in (folder / '8').rglob('*') if path.is_file()),
      key=lambda path: path.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)
    message = f'{largest.name} does not match.*--restore=previous'
    with self.assertRaisesRegex(StorageError, message):
      launch.start(self.config, {}, workdir)
    self.assertEqual(checkpoint.proven_steps(folder), [4, 8])
    self.assertTrue(launch.start(self.config, {}, workdir, restore_step=4))
    self.assertEqual(
      state_hash(workdir, self.config), state_hash(self.unbroken, self.config)
    )
    steps = [row['step'] for row in self.rows(workdir, 'train')]
    self.assertEqual(steps, list(range(1, 9)))

  def test_a_finished_run_stays_as_it_is(self):
    before = state_hash(self.unbroken, self.config)
    self.assertTrue(launch.start(self.config, {}, self.unbroken))
    self.assertEqual(state_hash(self.unbroken, self.config), before)

  def test_it_leaves_what_a_workdir_holds(self):
    self.assertTrue(self.finished)
    for name in (
      workdir_lib.RUN,
      workdir_lib.TOKENIZER,
      workdir_lib.METRICS,
      workdir_lib.SUMMARY,
      workdir_lib.REPORT,
    ):
      self.assertTrue((self.unbroken / name).is_file(), msg=name)
    self.assertNotEmpty(list((self.unbroken / 'tensorboard').iterdir()))
    self.assertNotEmpty(list((self.unbroken / 'samples').iterdir()))
    summary = json.loads((self.unbroken / workdir_lib.SUMMARY).read_text())
    self.assertGreater(summary['tokens_per_second'], 0)
    self.assertIsNone(summary['dollars'])

  def test_it_learns(self):
    losses = [row['loss'] for row in self.rows(self.unbroken, 'train')]
    self.assertLess(losses[-1], losses[0])
    heldout = self.rows(self.unbroken, 'eval')
    self.assertLess(
      heldout[-1]['heldout_bits_per_byte'], heldout[0]['heldout_bits_per_byte']
    )

  def test_other_data_is_refused(self):
    workdir = self.new_workdir()
    launch.start(self.config, {}, workdir, Stopper(2))
    other = short_runs.write_corpus(self.new_workdir() / 'corpus', documents=30)
    config = short_runs.small_config(other)
    before = workdir_lib.read_run(workdir)
    with self.assertRaisesRegex(
      StorageError, 'trained on other data .*: train_documents'
    ):
      launch.start(config, {}, workdir)
    self.assertEqual(workdir_lib.read_run(workdir), before)

  @pytest.mark.slow
  def test_a_loss_that_is_no_number_stops_before_anything_is_saved(self):
    workdir = self.new_workdir()
    config = dataclasses.replace(
      self.config,
      optim=dataclasses.replace(
        self.config.optim, learning_rate=1e30, warmup_steps=0
      ),
    )
    with self.assertRaisesRegex(journal.NonFiniteError, 'loss is'):
      launch.start(config, {}, workdir)
    self.assertIsNone(checkpoint.newest(workdir / workdir_lib.CHECKPOINTS))

  def test_a_step_thrown_away_names_its_records_and_what_is_redone_is_cut(self):
    workdir = self.new_workdir()
    plain = schedules.Schedule.rates

    def spoilt(schedule, step):
      rates = plain(schedule, step)
      if step + 1 in (2, 6):
        return dataclasses.replace(rates, mtp_weight=np.float32(np.nan))
      return rates

    corpus = corpus_lib.load(self.config)
    names = [
      corpus.batches.records().names()
      for _ in range(8)
      if next(corpus.batches) is not None
    ]
    path = workdir / workdir_lib.SKIPPED
    optim = dataclasses.replace(self.config.optim, ema_decay=0.5, ema_every=2)
    config = dataclasses.replace(self.config, optim=optim)
    with mock.patch.object(schedules.Schedule, 'rates', spoilt):
      launch.start(config, {}, workdir)
    # An average is due after steps 2, 4, 6 and 8, of which two changed nothing.
    saved = checkpoint.read_progress(workdir / workdir_lib.CHECKPOINTS, 8)
    self.assertEqual(saved['ema_updates'], 2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    self.assertEqual([row['step'] for row in rows], [2, 6])
    self.assertEqual([row['records'] for row in rows], [names[1], names[5]])
    self.assertNotEmpty(names[1][0])
    self.assertEqual(rows[0]['reason'], 'nonfinite')
    self.assertEqual(rows[0]['gradient_norm'], 'nan')
    launch.start(config, {}, workdir, restore_step=4)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    self.assertEqual([row['step'] for row in rows], [2])
    self.assertFalse((self.unbroken / workdir_lib.SKIPPED).exists())

  def test_init_from_takes_weights_and_a_fresh_optimizer(self):
    workdir = self.new_workdir()
    config = dataclasses.replace(
      self.config,
      train=dataclasses.replace(
        self.config.train, init_from=str(self.unbroken)
      ),
    )
    launch.start(config, {}, workdir, Stopper(1))
    opened = open_checkpoint(str(workdir))
    self.assertEqual(opened.step, 1)
    first = self.rows(workdir, 'train')[0]['loss']
    self.assertLess(first, self.rows(self.unbroken, 'train')[0]['loss'])
    run = workdir_lib.read_run(workdir)
    self.assertEqual(run['started_from'], str(self.unbroken))

  def test_a_prompt_longer_than_the_context_is_refused_at_once(self):
    config = dataclasses.replace(
      self.config,
      eval=dataclasses.replace(self.config.eval, prompts=('xyz ' * 900,)),
    )
    with self.assertRaisesRegex(ConfigError, 'eval.prompts'):
      launch.start(config, {}, self.new_workdir())

  @pytest.mark.slow
  def test_z_loss_is_a_column_of_its_own_where_it_is_on(self):
    workdir = self.new_workdir()
    train = dataclasses.replace(self.config.train, z_loss_weight=1e-3)
    config = dataclasses.replace(self.config, train=train)
    launch.start(config, {}, workdir, Stopper(2))
    ours = self.rows(workdir, 'train')[0]
    theirs = self.rows(self.unbroken, 'train')[0]
    self.assertNotIn('z_loss', theirs)
    # Near log V squared before anything is learned.
    self.assertBetween(ours['z_loss'], 0.03, 0.05)
    # The loss stays plain cross-entropy; the gradient is another.
    self.assertAlmostEqual(ours['loss'] / theirs['loss'], 1, delta=1e-6)
    self.assertNotEqual(ours['gradient_norm'], theirs['gradient_norm'])

  def test_stopping_before_the_first_step_is_no_error(self):
    workdir = self.new_workdir()
    self.assertFalse(launch.start(self.config, {}, workdir, lambda: True))


if __name__ == '__main__':
  absltest.main()
