import dataclasses

from absl.testing import absltest, parameterized

from seekax.configuration import presets
from seekax.configuration.config import (
  Config,
  from_config_dict,
  from_dict,
  GROUPS,
  to_config_dict,
  to_dict,
)
from seekax.configuration.data import DataConfig
from seekax.configuration.errors import ConfigError
from seekax.configuration.fp8 import Fp8Config
from seekax.configuration.model import ModelConfig
from seekax.configuration.train import PRECISIONS, profiled_steps, TrainConfig


class ValidationTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(num_experts=250), 'model.num_experts=250 is not divisible'),
    (dict(experts_per_token=129), 'above the 128 experts in the kept groups'),
    (dict(num_kept_groups=9), 'num_kept_groups=9 is above'),
    (dict(rope_head_dim=63), 'rope_head_dim=63 is odd'),
    (dict(attention='gqa', num_kv_heads=3), 'not divisible by'),
    (dict(attention='mlaa'), "did you mean 'mla'?"),
    (dict(router='softmaxx'), "did you mean 'softmax'?"),
    (dict(num_dense_layers=61), 'leaves no expert layer'),
    (dict(embed_dim=0), 'model.embed_dim=0 must be above 0'),
    (dict(embed_dim=-7168), 'must be above 0'),
    (dict(mtp_depth=-1), 'must not be negative'),
    (dict(norm_eps=float('nan')), 'must be above 0'),
    (dict(num_experts=8, experts_per_token=4), 'groups of one expert'),
    (dict(attention='mla', kv_latent_dim=0), 'kv_latent_dim=0'),
  )
  def test_sizes_that_do_not_fit_are_refused_in_words(self, change, message):
    with self.assertRaisesRegex(ConfigError, message.replace('?', r'\?')):
      dataclasses.replace(ModelConfig(), **change)

  def test_groups_are_checked_against_each_other(self):
    with self.assertRaisesRegex(ConfigError, 'above model.context_length'):
      Config(model=presets.tiny())
    with self.assertRaisesRegex(ConfigError, 'train.micro_batches=7'):
      Config(train=dataclasses.replace(TrainConfig(), micro_batches=7))

  @parameterized.parameters(
    (dict(scaling='tile'), "did you mean 'tiles'?"),
    (dict(gradient_format='e3m4'), 'is not one of e4m3, e5m2'),
    (dict(tile_size=0), 'fp8.tile_size=0 must be above 0'),
    (dict(accumulation='unpromoted'), 'set fp8.scaling=tensor'),
    (
      dict(gradient_scaling='blocks', scaling='tensor'),
      'set fp8.scaling=tiles',
    ),
    (
      dict(accumulation='tensor_core', tile_size=48),
      'fp8.tile_size=48 is no multiple of the 32 products',
    ),
  )
  def test_fp8_that_makes_no_sense_is_refused_in_words(self, change, message):
    with self.assertRaisesRegex(ConfigError, message.replace('?', r'\?')):
      Fp8Config(**change)

  def test_fp8_is_a_precision_of_training_and_computes_in_bfloat16(self):
    self.assertNotIn('fp8', PRECISIONS)
    train = TrainConfig(precision='fp8')
    self.assertEqual(train.compute_dtype, 'bfloat16')
    with self.assertRaisesRegex(ConfigError, "did you mean 'fp8'"):
      TrainConfig(precision='f8')

  @parameterized.parameters(
    ('x', "write a step or two, '10' or '10:13'"),
    ('3:', 'write a step or two'),
    ('3:4:5', 'write a step or two'),
    ('-3', 'write a step or two'),
    ('\u0663', 'write a step or two'),
    ('1:3', 'the first compiles the program; begin at 2 or later'),
    ('0', 'begin at 2 or later'),
    ('5:4', 'ends before it begins'),
    ('5:30', 'past the last of train.steps=20'),
  )
  def test_steps_that_can_not_be_profiled_are_refused(self, steps, message):
    with self.assertRaisesRegex(ConfigError, message):
      TrainConfig(steps=20, profile_steps=steps)

  @parameterized.parameters(('', (0, -1)), ('7', (7, 7)), ('2:20', (2, 20)))
  def test_profiled_steps(self, steps, expected):
    self.assertEqual(profiled_steps(steps), expected)

  def test_messages_are_one_line(self):
    with self.assertRaises(ConfigError) as caught:
      dataclasses.replace(ModelConfig(), num_experts=250)
    self.assertNotIn('\n', str(caught.exception))


class DataShardsTest(parameterized.TestCase):
  @parameterized.parameters(
    (15360, 8, 8), (2, 8, 2), (1, 8, 1), (12, 8, 6), (7, 4, 1), (7, 8, 7)
  )
  def test_the_number_of_shards_is_a_divisor_of_the_batch(
    self, rows, most, shards
  ):
    data = DataConfig(batch_size=rows, num_shards=most)
    self.assertEqual(data.num_shards, shards)
    # What run.json keeps means the same when it is read again.
    values = dataclasses.asdict(data)
    self.assertEqual(DataConfig(**values), data)

  @parameterized.parameters(
    ({'text_field': ''}, "data.text_field is ''; give a name"),
    ({'max_document_bytes': 0}, 'data.max_document_bytes=0 must be above 0'),
    ({'num_shards': 0}, 'data.num_shards=0 must be above 0'),
  )
  def test_what_can_not_be_read_by_is_refused(self, values, message):
    with self.assertRaisesRegex(ConfigError, message):
      DataConfig(**values)

  def test_a_small_batch_is_enough_to_say_at_laptop_size(self):
    config = presets.shrink_run(presets.run_of(ModelConfig()))
    self.assertEqual(config.data.num_shards, 4)
    config.data.batch_size = 2
    resolved = from_config_dict(config)
    self.assertEqual(resolved.data.num_shards, 2)


class DictTest(parameterized.TestCase):
  def test_config_survives_dict_and_config_dict(self):
    config = Config()
    self.assertEqual(from_dict(to_dict(config)), config)
    self.assertEqual(from_config_dict(to_config_dict(config)), config)

  def test_no_value_is_none(self):
    for entries in to_dict(Config()).values():
      for value in entries.values():
        self.assertIsNotNone(value)

  def test_every_key_has_a_meaning(self):
    for kind in GROUPS.values():
      for field in dataclasses.fields(kind):
        self.assertNotEmpty(field.metadata['help'], msg=field.name)

  @parameterized.parameters(
    ({'modle': {}}, "unknown config group 'modle'; did you mean 'model'"),
    ({'model': {'num_expert': 3}}, 'model.num_expert; did you mean'),
    ({'model': {'num_experts': '3'}}, "model.num_experts='3' is a str"),
    ({'model': {'num_experts': True}}, 'is a bool, not a int'),
    ({'optim': {'learning_rate': 'x'}}, 'is a str, not a float'),
  )
  def test_wrong_keys_and_types_are_refused(self, values, message):
    with self.assertRaisesRegex(ConfigError, message):
      from_dict(values)

  def test_an_integer_serves_as_a_float(self):
    config = from_dict({'optim': {'learning_rate': 1}})
    self.assertIsInstance(config.optim.learning_rate, float)


if __name__ == '__main__':
  absltest.main()
