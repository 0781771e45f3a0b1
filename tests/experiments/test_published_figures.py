"""The published figures that the planner is held against, row by row."""

import pathlib
import sys

from absl.testing import absltest, parameterized

# Experiments are scripts, not a package.
sys.path.append(
  str(pathlib.Path(__file__).resolve().parents[2] / 'experiments')
)
import insights_table_4
from planner import figures, runs
from seekax.planning import layout as layout_lib
from seekax.planning import schedules
from seekax.planning.hardware import FITTED

_AIM = 0.15


class PhasesTest(absltest.TestCase):
  def test_chunks_give_back_the_phases(self):
    chunk = insights_table_4.chunks()
    counts = schedules.dual_counts(16, 120)
    table = insights_table_4.MPFT.phases
    self.assertAlmostEqual(counts['F'] * chunk.forward, table.forward)
    self.assertAlmostEqual(counts['FB'] * chunk.overlapped, table.pair)
    self.assertAlmostEqual(
      counts['B'] * chunk.backward + counts['I'] * chunk.backward_input,
      table.backward,
    )
    for column in (insights_table_4.MPFT, insights_table_4.MRFT):
      self.assertAlmostEqual(
        column.phases.total, float(column.seconds_per_step), delta=0.03
      )


class ErrorsTest(parameterized.TestCase):
  """What docs/planning.md says of the errors; a change of model shows here."""

  def test_which_rows_are_missed(self):
    rows = figures.training_rows() + figures.serving_rows()
    missed = {
      row.name
      for row in rows
      if abs(row.predict(FITTED) / row.value - 1) > _AIM
    }
    self.assertEqual(
      missed,
      {
        'V3 step: weight chunks (1W)',
        'V3 step: optimizer',
        'V3 context extension',
        'Automodel BF16, 256 H100',
        'Automodel Kimi-K2, 256 H100',
        'Llama 3.1 70B',
        'Llama 3.1 8B',
        'Service: input per node, cache hits too',
        'Service: output per node',
        'Profile: decoding, 128 requests',
      },
    )

  def test_three_sources_are_fitted(self):
    fitted = [row.name for row in figures.training_rows() if row.fitted]
    self.assertLen([n for n in fitted if n.startswith('V3 step: ')], 5)
    self.assertEqual(
      [name for name in fitted if not name.startswith('V3 step: ')],
      ['Megatron BF16, 1,024 H100', 'Llama 3.1 405B'],
    )
    self.assertFalse(any(row.fitted for row in figures.serving_rows()))

  def test_which_layouts_find_no_room(self):
    unplaced = {
      row.name for row in figures.training_rows() if not runs.fits(row.run)
    }
    self.assertEqual(
      unplaced,
      {
        'V3 context extension',
        'Llama 3.1 405B',
        'Automodel BF16, 256 H100',
        'Automodel Kimi-K2, 256 H100',
      },
    )

  def test_no_layout_is_refused_for_another_reason(self):
    for row in figures.training_rows():
      run = row.run
      assert run
      wrong = layout_lib.problem(
        run.layout,
        run.model,
        run.device,
        run.batch_size * run.split_sequences,
        run.sequence_length,
      )
      self.assertEqual(wrong, '', msg=row.name)

  def test_what_was_settled_after_a_first_look_proves_nothing(self):
    for row in figures.training_rows():
      if 'with it in sight' in row.note or 'phases are fitted' in row.note:
        self.assertTrue(row.in_sight, msg=row.name)

  def test_unknown_recomputation_is_the_least_that_fits(self):
    for row in figures.training_rows():
      if not row.remat_known:
        assert row.run
        chosen = row.run.layout.remat
        for remat, run in runs.recomputing(row.run).items():
          if remat == chosen:
            self.assertTrue(runs.fits(run), msg=row.name)
            break
          self.assertFalse(runs.fits(run), msg=row.name)

  def test_megatron_spreads_experts_over_tensor_ranks(self):
    run = figures.training_rows()[6].run
    assert run
    layout = run.layout
    self.assertEqual((layout.devices, layout.data_ranks), (1024, 64))
    self.assertEqual((layout.experts_over, layout.experts_per_node), (64, 8))
    self.assertTrue(layout.within('expert', 8))

  @parameterized.parameters((32768, 1920), (131072, 480))
  def test_extension_has_the_papers_batches(self, positions, sequences):
    longer = runs.deepseek_v3().extended(positions)
    self.assertEqual(longer.batch_size, sequences)
    self.assertEqual(longer.step_tokens, 15360 * 4096)


if __name__ == '__main__':
  absltest.main()
