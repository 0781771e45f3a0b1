import dataclasses

from absl.testing import absltest, parameterized

from seekax import presets
from seekax.config import InputError
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
    self.assertTrue(paper.hides_exchange)
    self.assertEqual(
      layout.problem(paper, presets.v3_671b(), _H800, 15360, 4096), ''
    )

  def test_other_numbers_of_devices_name_the_nearest(self):
    with self.assertRaisesRegex(InputError, 'nearest is 2048'):
      layout.paper(1900)


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
    ('pipeline:3', 'the nearest is 63'),
    ('data:32', 'takes 32 devices, not --devices=64'),
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

  def test_key_heads_are_cut_too(self):
    model = dataclasses.replace(presets.llama3_8b(), num_kv_heads=2)
    wrong = layout.problem(Layout(tensor=4), model, _H800, 2048, 8192)
    self.assertIn('not divisible by tensor', wrong)


if __name__ == '__main__':
  absltest.main()
