import dataclasses

from absl.testing import absltest, parameterized

from seekax.planning import calibration, schedules, step_time

_AIM = 0.15


class FitTest(absltest.TestCase):
  def test_constants_are_those_of_the_sources(self):
    fitted = dataclasses.asdict(calibration.fit(step_time.Constants()))
    for name, value in dataclasses.asdict(step_time.FITTED).items():
      self.assertAlmostEqual(fitted[name] / value, 1, delta=1e-4, msg=name)

  def test_fit_does_not_depend_on_where_it_starts(self):
    start = step_time.Constants(
      expert_efficiency=0.5,
      passes=10,
      dense_efficiency=0.4,
      overlap_slowdown=1.5,
      bubble_stretch=1,
    )
    fitted = calibration.fit(start)
    self.assertAlmostEqual(
      fitted.passes / step_time.FITTED.passes, 1, delta=1e-4
    )

  def test_chunks_give_back_the_phases(self):
    chunk = calibration.published_chunks()
    counts = schedules.dual_counts(16, 120)
    table = calibration.INSIGHTS_TABLE_4
    self.assertAlmostEqual(counts['F'] * chunk.forward, table.forward)
    self.assertAlmostEqual(counts['FB'] * chunk.overlapped, table.pair)
    self.assertAlmostEqual(
      counts['B'] * chunk.backward + counts['I'] * chunk.backward_input,
      table.backward,
    )
    self.assertAlmostEqual(
      sum(dataclasses.astuple(table)[:-1]), table.step, delta=0.03
    )


class ErrorsTest(parameterized.TestCase):
  """What docs/planning.md says of the errors; a change of model shows here."""

  def test_which_rows_are_missed(self):
    rows = calibration.training_rows() + calibration.serving_rows()
    missed = {
      row.name
      for row in rows
      if abs(row.predict(step_time.FITTED) / row.value - 1) > _AIM
    }
    self.assertEqual(
      missed,
      {
        'V3 step: weight chunks (1W)',
        'V3 context extension',
        'Llama 3.1 70B',
        'Llama 3.1 8B',
        'Service: input per node, cache hits too',
        'Service: output per node',
        'Profile: decoding, 128 requests',
      },
    )

  def test_three_sources_are_fitted(self):
    fitted = [row.name for row in calibration.training_rows() if row.fitted]
    self.assertLen([n for n in fitted if n.startswith('V3 step: ')], 5)
    self.assertEqual(
      [name for name in fitted if not name.startswith('V3 step: ')],
      ['Megatron BF16, 1,024 H100', 'Llama 3.1 405B'],
    )
    self.assertFalse(any(row.fitted for row in calibration.serving_rows()))

  @parameterized.parameters((32768, 1920), (131072, 480))
  def test_extension_has_the_papers_batches(self, positions, sequences):
    longer = calibration.extension(calibration.deepseek_v3(), positions)
    self.assertEqual(longer.batch_size, sequences)
    self.assertEqual(longer.step_tokens, 15360 * 4096)


if __name__ == '__main__':
  absltest.main()
