import dataclasses
import io
import json
import pathlib
from unittest import mock

from absl.testing import absltest
import rich.console

from seekax.configuration import presets
from seekax.runs.metrics import MetricsWriter, router_names
from seekax.storage import workdir as workdir_lib


class MetricsWriterTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)

  def write(self, step, *steps):
    writer = MetricsWriter(self.workdir, step, 10)
    for number in steps:
      writer.write('train', number, loss=float(number), max_violation=[0.5])
      writer.write('sample', number, prompt='p', text='t')
    writer.close()

  def rows(self):
    text = (self.workdir / workdir_lib.METRICS).read_text()
    return [json.loads(line) for line in text.splitlines()]

  def test_going_on_drops_rows_and_samples_of_repeated_steps(self):
    self.write(0, 1, 2, 3)
    self.write(1, 2)
    self.assertEqual([row['step'] for row in self.rows()], [1, 1, 2, 2])
    samples = self.workdir / workdir_lib.SAMPLES
    self.assertEqual(
      sorted(path.name for path in samples.iterdir()),
      ['000001.txt', '000002.txt'],
    )
    self.assertEqual((samples / '000002.txt').read_text().count('>>>'), 1)

  def test_samples_of_other_names_stay(self):
    self.write(0, 1, 2)
    theirs = self.workdir / workdir_lib.SAMPLES / '002.txt'
    theirs.write_text('mine')
    self.write(1)
    self.assertEqual(theirs.read_text(), 'mine')

  def test_a_line_fits_the_terminal_and_says_nothing_unknown(self):
    row = {
      'loss': 2.0,
      'bits_per_byte': 1.5,
      'tokens_per_second': None,
      'mfu': None,
      'dollars': None,
      'gradient_norm': 1.0,
      'learning_rate': 1e-3,
      'mtp_loss': 0.0,
      'max_violation': [0.5, 1.5],
      'peak_memory_bytes': 2**30,
    }
    writer = MetricsWriter(self.workdir, 0, 10)
    for terminal, width in ((True, 60), (True, 30), (False, 60)):
      said = io.StringIO()
      writer._console = rich.console.Console(
        file=said, force_terminal=terminal, width=width, color_system=None
      )
      writer.show_train(3, row, eta=70.0)
      [line] = said.getvalue().splitlines()
      self.assertStartsWith(line, 'step  3/10  loss 2.000')
      self.assertNotIn('n/a', line)
      if terminal:
        self.assertLessEqual(len(line), width)
        self.assertNotIn('eta', line)
      else:
        self.assertIn('max violation 1.00, at most 1.50', line)
        self.assertEndsWith(line, 'eta 1:10')
    writer.close()

  def test_layers_are_counted_from_0_with_those_without_experts(self):
    model = dataclasses.replace(presets.tiny(), mtp_depth=1)
    self.assertEqual(router_names(model), ['layer_01', 'layer_02', 'mtp_1'])
    writer = MetricsWriter(self.workdir, 0, 10, router_names(model))
    with mock.patch.object(writer._board, 'add_scalar') as add:
      writer.write(
        'train', 1, max_violation=[1.0, 2.0], max_violation_mtp=[3.0]
      )
    writer.close()
    self.assertEqual(
      [call.args[:2] for call in add.call_args_list],
      [
        ('max_violation/layer_01', 1.0),
        ('max_violation/layer_02', 2.0),
        ('max_violation_mtp/mtp_1', 3.0),
      ],
    )

  def test_what_is_no_number_is_null(self):
    writer = MetricsWriter(self.workdir, 0, 10)
    writer.write('train', 1, loss=float('nan'), load={'layers': [[1.0]]})
    writer.close()
    self.assertEqual(
      self.rows(),
      [{'kind': 'train', 'step': 1, 'loss': None, 'load': {'layers': [[1.0]]}}],
    )

  def test_tensorboard_gets_a_file(self):
    self.write(0, 1)
    events = list((self.workdir / workdir_lib.TENSORBOARD).iterdir())
    self.assertNotEmpty(events)
    self.assertGreater(events[0].stat().st_size, 0)


if __name__ == '__main__':
  absltest.main()
