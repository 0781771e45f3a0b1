import dataclasses

from absl.testing import absltest, parameterized

from seekax.configuration import presets
from seekax.configuration.config import Config, to_config_dict
from seekax.configuration.errors import ConfigError
from seekax.configuration.model import ATTENTION_KINDS, FFN_KINDS


class PresetTest(parameterized.TestCase):
  @parameterized.parameters(*presets.PRESETS)
  def test_shrinking_keeps_the_kinds_of_parts(self, name):
    model = presets.PRESETS[name]()
    small = presets.shrink(model)
    for key in ('attention', 'ffn', 'router', 'group_score', 'rope_layout'):
      self.assertEqual(getattr(small, key), getattr(model, key))
    for key in ('query_latent_dim', 'mtp_depth', 'num_shared_experts'):
      self.assertEqual(bool(getattr(small, key)), bool(getattr(model, key)))
    self.assertEqual(small.num_expert_groups > 1, model.num_expert_groups > 1)

  def test_attention_and_ffn_are_independent(self):
    for attention in ATTENTION_KINDS:
      for ffn in FFN_KINDS:
        model = dataclasses.replace(
          presets.tiny(), attention=attention, ffn=ffn, num_kv_heads=2
        )
        self.assertEqual(model.num_expert_layers, 2 if ffn == 'experts' else 0)

  def test_an_unknown_variant_is_refused(self):
    with self.assertRaisesRegex(ConfigError, "did you mean 'tiny'"):
      presets.variant(to_config_dict(Config()), 'tinny')


if __name__ == '__main__':
  absltest.main()
