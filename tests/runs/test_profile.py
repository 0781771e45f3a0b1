import dataclasses
import gzip
import json
import pathlib

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import pytest

from seekax.runs import launch
from seekax.runs.profile import PROFILE, StepProfiler
import short_runs


def traces(workdir: pathlib.Path) -> list[pathlib.Path]:
  return list((workdir / PROFILE).rglob('perfetto_trace.json.gz'))


class ProfileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.said = []

  def profiler(self, steps: str, started_at: int = 0) -> StepProfiler:
    return StepProfiler(steps, self.workdir, started_at, self.said.append)

  @pytest.mark.slow
  def test_a_run_leaves_a_trace_of_its_steps(self):
    source = short_runs.write_corpus(self.workdir / 'corpus')
    config = short_runs.small_config(source, profile_steps='3:5')
    # A model that compiles quickly, and nothing else in the trace.
    config = dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, ffn='dense', mtp_depth=0),
      eval=dataclasses.replace(config.eval, every=8),
    )
    launch.start(config, {}, self.workdir)
    (path,) = traces(self.workdir)
    with gzip.open(path) as file:
      events = json.load(file)['traceEvents']
    steps = [e['args'] for e in events if e.get('name') == 'train']
    self.assertEqual([args['step_num'] for args in steps], ['3', '4', '5'])
    self.assertGreater(len(events), 100)
    # What TensorBoard's profile plugin reads.
    self.assertNotEmpty(list(path.parent.glob('*.xplane.pb')))

  def test_a_line_says_where_it_is_and_how_to_open_it(self):
    profiler = self.profiler('2')
    self.assertTrue(profiler.begins_after(1))
    profiler.begin(jnp.zeros(3))
    self.assertTrue(profiler.ends_after(2))
    profiler.end(jnp.zeros(3))
    (path,) = traces(self.workdir)
    (line,) = self.said
    for words in (str(path), 'ui.perfetto.dev', 'tensorboard --logdir='):
      self.assertIn(words, line)

  @parameterized.parameters(('', 0), ('3:5', 5), ('3:5', 6))
  def test_off_or_past_is_silent(self, steps, started_at):
    profiler = self.profiler(steps, started_at)
    for step in range(started_at, 10):
      self.assertFalse(profiler.begins_after(step))
      self.assertFalse(profiler.ends_after(step))
    profiler.end()
    self.assertEmpty(self.said)
    self.assertFalse((self.workdir / PROFILE).exists())

  @parameterized.parameters((2, 3), (3, 4))
  def test_going_on_leaves_the_compiling_step_out(self, started_at, compiling):
    profiler = self.profiler('3:5', started_at)
    self.assertEqual(
      self.said,
      [f'step {compiling} compiles the program; the profile leaves it out'],
    )
    begins = [s for s in range(started_at, 6) if profiler.begins_after(s)]
    self.assertEqual(begins, [compiling])

  def test_no_step_is_left_when_the_only_one_compiles(self):
    profiler = self.profiler('3', started_at=2)
    self.assertIn('no step left', self.said[0])
    self.assertFalse(any(map(profiler.begins_after, range(6))))

  def test_what_can_not_be_written_costs_the_profile_alone(self):
    (self.workdir / PROFILE).write_text('in the way')
    profiler = self.profiler('2')
    profiler.begin(None)
    profiler.end(None)
    self.assertIn('could not be written', self.said[0])

  def test_an_end_that_comes_early_writes_what_there_is(self):
    profiler = self.profiler('2:9')
    profiler.begin(None)
    profiler.end()
    self.assertLen(traces(self.workdir), 1)
    profiler.end()
    self.assertLen(self.said, 1)


if __name__ == '__main__':
  absltest.main()
