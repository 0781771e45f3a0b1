import re

from absl.testing import absltest

from seekax.report import plots


class StackedBarsTest(absltest.TestCase):
  def test_every_part_is_drawn_and_named_with_its_values(self):
    svg = plots.stacked_bars(
      'A step',
      'seconds',
      {'one': {'work': 3.0, 'wait': 1.0}, 'two': {'work': 2.0, 'none': 0.0}},
    )
    self.assertStartsWith(svg, '<svg')
    for words in ('work: 3, 2', 'wait: 1, 0', 'one', 'two', 'seconds'):
      self.assertIn(f'>{words}<', svg)
    self.assertNotIn('>none:', svg)
    # Two names, so two colours and two squares of a legend.
    self.assertLen(re.findall('■', svg), 2)

  def test_a_single_part_needs_no_legend(self):
    svg = plots.stacked_bars('Cost', 'M$', {'a': {'cost': 1.0}})
    self.assertNotIn('■', svg)
    self.assertIn('>a<', svg)


if __name__ == '__main__':
  absltest.main()
