import json
import pathlib

from absl.testing import absltest

from seekax.storage import workdir as workdir_lib
from seekax.training.metrics import MetricsWriter


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
