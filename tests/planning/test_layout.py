import dataclasses

from absl.testing import absltest, parameterized

from seekax.configuration import presets
from seekax.configuration.errors import InputError
from seekax.planning import hardware, layout
from seekax.planning.layout import Layout

_H800 = hardware.DEVICES['h800']


class PaperTest(absltest.TestCase):
  def test_axes_of_the_report(self):
    paper = layout.paper(2048)
    self.assertEqual(paper.devices, 2048)
    self.assertEqual((paper.pipeline, paper.experts_over), (16, 64))
    self.assertEqual(paper.data_ranks, 128)
    self.assertEqual(paper.micro_batches(15360), 120)
    self.assertEqual(
      layout.problem(paper, presets.v3_671b(), _H800, 15360, 4096), ''
    )

  def test_other_numbers_of_devices_are_refused(self):
    with self.assertRaisesRegex(layout.NoMultiple, 'multiple of 1024') as told:
      layout.paper(1900)
    self.assertEqual(told.exception.unit, 1024)


class DomainTest(parameterized.TestCase):
  """Ranks are numbered along tensor, context, expert ... pipeline."""

  @parameterized.parameters(
    (dict(expert=8), 'expert', True),
    (dict(expert=8, tensor=2), 'expert', False),
    (dict(expert=8, tensor=2), 'tensor', True),
    (dict(expert=4, context=2), 'context', True),
    (dict(context=16), 'context', False),
    (dict(expert_node=2, expert=8), 'expert_node', False),
    (dict(fsdp=8), 'fsdp', True),
    (dict(fsdp=2, expert=8), 'fsdp', False),
    (dict(pipeline=2, expert=4), 'pipeline', True),
  )
  def test_an_axis_reaches_over_all_inside_of_it(self, sizes, axis, inside):
    self.assertEqual(Layout(**sizes).within(axis, 8), inside)


class ParseTest(parameterized.TestCase):
  def test_what_is_described_is_parsed(self):
    for wanted in (
      Layout(pipeline=4, expert=8, data=2, schedule='zb1p', remat='full'),
      Layout(tensor=2, fsdp=4, overlap=True, fp8_dispatch=False),
      Layout(),
    ):
      self.assertEqual(layout.parse(wanted.describe(), wanted.devices), wanted)

  def test_data_takes_the_rest(self):
    self.assertEqual(layout.parse('pipeline:4,tensor:2', 64).data, 8)
    self.assertEqual(layout.parse('pipeline:4,data:-1', 64).data, 16)

  @parameterized.parameters(
    ('papr', "did you mean 'paper'"),
    ('pipelin:4', "did you mean 'pipeline'"),
    ('pipeline:0', 'no number above 0'),
    ('pipeline:-1', 'no number above 0'),
    ('pipeline:x', 'no number above 0'),
    ('pipeline', 'no number above 0'),
    ('schedule:zb1', "did you mean 'zb1p'"),
    ('remat:papr', "did you mean 'paper'"),
    ('overlap:1', 'not true or false'),
    ('pipeline:3', 'and --devices=64 is no multiple$'),
    ('data:32', 'takes 32 devices, not --devices=64'),
    ('data:', 'data:-1 for the rest'),
    ('data:-2', 'data:-1 for the rest'),
    ('expert:8,expert:16', 'expert is given twice'),
  )
  def test_what_cannot_be_is_said(self, text, words):
    with self.assertRaisesRegex(InputError, words):
      layout.parse(text, 64)


class ProblemTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(expert=8, expert_node=3), '256 experts are not divisible'),
    (dict(pipeline=64), '64 stages are more than the 62 layers'),
    (dict(tensor=16), 'fast links join'),
    (dict(expert=16), 'fast links join'),
    (dict(tensor=2, expert=8), 'expert x tensor = 16 is more than the 8 H800'),
    (dict(context=2, expert=8), 'expert x context = 16 is more than the 8'),
    (dict(tensor=2, expert=8, whole_experts=True), 'expert x tensor = 16'),
    (dict(context=3), '4096 positions are not divisible'),
    (dict(data=7), 'a batch of 15360 sequences is not divisible by 7'),
    (dict(micro_batch=7), 'not divisible by 7'),
    (dict(schedule='zb1p', virtual_stages=2, pipeline=2), 'virtual_stages'),
    (dict(schedule='dualpipe', pipeline=3), 'even numbers'),
    (dict(schedule='dualpipe', pipeline=4, data=3840), 'at least 8'),
    (dict(schedule='dualpipev', pipeline=4), 'simulated only'),
  )
  def test_words(self, changes, words):
    wrong = layout.problem(
      Layout(**changes), presets.v3_671b(), _H800, 15360, 4096
    )
    self.assertIn(words, wrong)

  def test_dense_models_have_no_experts_to_cut(self):
    wrong = layout.problem(
      Layout(expert=8), presets.llama3_8b(), _H800, 2048, 8192
    )
    self.assertIn('no experts', wrong)

  def test_what_lies_within_fast_links_is_allowed(self):
    for sizes in (
      dict(tensor=2, expert=4),
      dict(context=16),  # Over the network.
      dict(tensor=2, expert=4, expert_node=8, whole_experts=True),
    ):
      model = presets.v3_671b()
      wrong = layout.problem(Layout(**sizes), model, _H800, 15360, 4096)
      self.assertEqual(wrong, '', msg=sizes)
    rack = hardware.DEVICES['gb200']
    found = layout.problem(Layout(expert=64), model, rack, 15360, 4096)
    self.assertEqual(found, '')

  def test_widths_are_cut_evenly(self):
    model = dataclasses.replace(presets.v3_671b(), expert_dim=2046)
    wrong = layout.problem(Layout(tensor=4), model, _H800, 15360, 4096)
    self.assertIn('expert_dim = 2046 is not divisible', wrong)

  def test_key_heads_are_cut_too(self):
    model = dataclasses.replace(presets.llama3_8b(), num_kv_heads=2)
    wrong = layout.problem(Layout(tensor=4), model, _H800, 2048, 8192)
    self.assertIn('not divisible by tensor', wrong)


if __name__ == '__main__':
  absltest.main()
