import dataclasses

from absl.testing import absltest, parameterized

from seekax import presets
from seekax.planning import memory


class PublishedTest(parameterized.TestCase):
  """Bytes per token in bfloat16 (arXiv 2505.09343, table 1)."""

  @parameterized.parameters(
    ('v3_671b', 70_272),
    ('llama3_70b', 327_680),  # as Qwen2.5-72B: same layers and groups
    ('llama3_405b', 516_096),
  )
  def test_cache_bytes(self, name, size):
    self.assertEqual(
      memory.cache_bytes_per_token(presets.PRESETS[name]()), size
    )

  @parameterized.parameters(('v2_lite', 15_552), ('v2', 34_560))
  def test_elements_of_the_ablation(self, name, elements):
    self.assertEqual(
      memory.cache_elements_per_token(presets.PRESETS[name]()), elements
    )

  def test_v2_at_six_bits(self):
    self.assertEqual(memory.cache_bytes_per_token(presets.v2(), 0.75), 25_920)

  def test_expanded_heads_of_v3(self):
    v3 = presets.v3_671b()
    expanded = memory.expanded_cache_elements_per_token(v3)
    self.assertEqual(expanded, 61 * 40_960)
    self.assertEqual(2 * expanded, 4_997_120)
    self.assertAlmostEqual(
      expanded / memory.cache_elements_per_token(v3), 71.1, places=1
    )


class LawsTest(parameterized.TestCase):
  def test_latent_does_not_grow_with_heads(self):
    model = presets.tiny()
    more = dataclasses.replace(model, num_heads=2 * model.num_heads)
    self.assertEqual(
      memory.cache_elements_per_token(model),
      memory.cache_elements_per_token(more),
    )

  def test_mqa_to_mha_is_the_number_of_heads(self):
    model = presets.llama3_tiny()
    mqa, mha = (
      memory.cache_elements_per_token(
        dataclasses.replace(model, attention=kind)
      )
      for kind in ('mqa', 'mha')
    )
    self.assertEqual(mha, model.num_heads * mqa)

  def test_cached_heads_are_expanded_already(self):
    model = presets.llama3_8b()
    self.assertEqual(
      memory.expanded_cache_elements_per_token(model),
      memory.cache_elements_per_token(model),
    )


if __name__ == '__main__':
  absltest.main()
