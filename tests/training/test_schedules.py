"""Laws of what changes along a run."""

import dataclasses

from absl.testing import absltest, parameterized
import numpy as np

from reference import training as oracle
from seekax.cli.flags import load_config
from seekax.configuration.config import Config, from_config_dict
from seekax.configuration.data import DataConfig
from seekax.configuration.errors import ConfigError
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig
from seekax.training.schedules import Schedule

_PEAK, _FINAL, _LAST = 2e-3, 5e-4, 1e-4
_DATA = DataConfig(sequence_length=16, batch_size=12, num_shards=1)
_TOKENS = 12 * 16  # Of a full batch.


def _config(warmup, constant, decay, final, steps=100, **train) -> Config:
  """Lengths in full batches, the warm-up in steps."""
  return Config(
    data=_DATA,
    optim=OptimConfig(
      learning_rate=_PEAK,
      final_learning_rate=_FINAL,
      last_learning_rate=_LAST,
      warmup_steps=warmup,
      constant_tokens=constant * _TOKENS,
      decay_tokens=decay * _TOKENS,
      final_tokens=final * _TOKENS,
    ),
    train=TrainConfig(steps=steps, **train),
  )


_RAMP = {
  'micro_batches': 6,
  'ramp_micro_batches': 2,
  'ramp_tokens': 20 * _TOKENS,
}


class LearningRateTest(parameterized.TestCase):
  @parameterized.parameters(
    (10, 30, 30, 20, {}),
    (10, 30, 0, 0, {}),
    (0, 20, 30, 0, {}),
    (10, 0, 30, 5, {}),
    (0, 0, 0, 0, {}),
    (1, 1, 5, 1, {}),
    (10, 30, 30, 20, _RAMP),
    (0, 7, 0, 0, _RAMP),
  )
  def test_every_step_matches_oracle(
    self, warmup, constant, decay, final, ramp
  ):
    config = _config(warmup, constant, decay, final, **ramp)
    schedule = Schedule(config)
    for step in range(120):
      expected = oracle.learning_rate(step, config)
      self.assertAlmostEqual(
        schedule.learning_rate(step), expected, delta=1e-12, msg=f'step {step}'
      )

  @parameterized.parameters(
    (0, _PEAK / 10),  # The first step moves.
    (8, 9 * _PEAK / 10),
    (9, _PEAK),
    (30, _PEAK),
    (45, (_PEAK + _FINAL) / 2),
    (60, _FINAL),
    (79, _FINAL),
    (80, _LAST),
    (10**6, _LAST),
  )
  def test_corners(self, step, rate):
    schedule = Schedule(_config(10, 30, 30, 20))
    self.assertAlmostEqual(schedule.learning_rate(step), rate, delta=1e-12)
    told = schedule.rates(step).learning_rate
    self.assertEqual((told.dtype, told.shape), (np.float32, ()))
    self.assertAlmostEqual(float(told), rate, delta=1e-9)

  def test_cosine_ends_with_the_run(self):
    schedule = Schedule(_config(10, 20, 0, 0))
    self.assertGreater(schedule.learning_rate(99), _FINAL)
    self.assertAlmostEqual(schedule.learning_rate(100), _FINAL, delta=1e-12)

  def test_run_shorter_than_its_warm_up_stays_finite(self):
    schedule = Schedule(_config(10, 20, 0, 0, steps=5))
    rates = [schedule.learning_rate(step) for step in range(5)]
    self.assertTrue(np.isfinite(rates).all())


class RampTest(parameterized.TestCase):
  def test_batches_match_oracle(self):
    config = _config(0, 0, 0, 0, **_RAMP)
    schedule, tokens, parts = Schedule(config), 0, []
    for step in range(60):
      self.assertEqual(schedule.tokens_before(step), tokens)
      batch = oracle.batch_tokens(tokens, config)
      self.assertEqual(schedule.batch_tokens(step), batch)
      parts.append(schedule.micro_batches(step))
      self.assertEqual(schedule.step_at(tokens), step)
      self.assertEqual(schedule.step_at(tokens + 1), step + 1)
      tokens += batch
    self.assertEqual(sorted(set(parts)), [2, 3, 4, 5, 6])
    self.assertEqual(parts, sorted(parts))
    self.assertEqual(schedule.total_tokens, schedule.tokens_before(100))

  def test_a_ramp_that_outlasts_the_run_by_far_is_answered_at_once(self):
    ramp = {'micro_batches': 4, 'ramp_tokens': 10**18}
    schedule = Schedule(_config(0, 0, 0, 0, steps=10**10, **ramp))
    third = 10**18 // 3 + 1  # The first at which a second micro-batch comes.
    step = schedule.step_at(third)
    self.assertEqual(step, -(-third // (_TOKENS // 4)))
    self.assertEqual(
      [schedule.micro_batches(k) for k in (0, step - 1, step)], [1, 1, 2]
    )
    self.assertEqual(schedule.micro_batches(10**18), 4)
    self.assertEqual(schedule.total_tokens, 10**10 * _TOKENS // 4)

  def test_without_one_every_batch_is_full(self):
    schedule = Schedule(_config(0, 0, 0, 0, micro_batches=6))
    self.assertEqual({schedule.micro_batches(k) for k in range(9)}, {6})
    self.assertEqual(schedule.tokens_before(7), 7 * _TOKENS)

  @parameterized.parameters(
    ({'ramp_micro_batches': 7}, 'only grows'),
    ({'ramp_tokens': -1}, 'must not be negative'),
  )
  def test_what_can_not_work_is_refused(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      _config(0, 0, 0, 0, **(_RAMP | change))

  def test_parts_hold_rows_of_every_shard(self):
    config = _config(0, 0, 0, 0, **_RAMP)
    with self.assertRaisesRegex(ConfigError, 'divisible by data.num_shards=4'):
      dataclasses.replace(config, data=dataclasses.replace(_DATA, num_shards=4))


class SwitchTest(parameterized.TestCase):
  def test_gamma_and_lambda_change_once(self):
    schedule = Schedule(
      _config(
        0,
        0,
        0,
        0,
        bias_update_tokens=5 * _TOKENS,
        mtp_weight_tokens=3 * _TOKENS,
      )
    )
    gamma = [schedule.bias_update_rate(step) for step in range(8)]
    self.assertEqual(gamma, 5 * [1e-3] + 3 * [0.0])
    weights = [schedule.mtp_weight(step) for step in range(8)]
    self.assertEqual(weights, 3 * [0.3] + 5 * [0.1])

  def test_by_default_they_do_not(self):
    schedule = Schedule(_config(0, 0, 0, 0))
    self.assertEqual(schedule.bias_update_rate(10**6), 1e-3)
    self.assertEqual(schedule.mtp_weight(10**6), 0.3)


class GoingOnTest(parameterized.TestCase):
  """A schedule may change as long as the steps behind don't."""

  @parameterized.parameters(
    # The rate is constant until step 20, whatever the run's length.
    ({'steps': 100}, {'steps': 200}, 20, ''),
    ({'steps': 100}, {'steps': 200}, 25, 'learning_rate of step 2[2-5]'),
    ({}, {'mtp_weight_tokens': 30 * _TOKENS}, 30, ''),
    ({}, {'mtp_weight_tokens': 29 * _TOKENS}, 30, 'mtp_weight of step 30'),
    ({}, {'bias_update_tokens': 29 * _TOKENS}, 30, 'bias_update_rate'),
    (_RAMP, _RAMP | {'ramp_tokens': 21 * _TOKENS}, 30, 'batch_tokens'),
  )
  def test_the_first_difference_is_found(self, there, here, step, message):
    # Where the length differs, the decay ends with the run.
    phases = (0, 20, 0 if 'steps' in there else 10, 0)
    one, other = (Schedule(_config(*phases, **x)) for x in (there, here))
    found = one.first_difference(other, step)
    if message:
      self.assertRegex(found, message)
    else:
      self.assertEqual(found, '')

  def test_a_decay_made_explicit_is_the_same(self):
    one = Schedule(_config(5, 20, 0, 0, steps=100))
    longer = _config(5, 20, one.decay_tokens // _TOKENS, 0, steps=150)
    self.assertEqual(one.first_difference(Schedule(longer), 100), '')
    self.assertEqual(Schedule(longer).learning_rate(120), _FINAL)


class PaperTest(absltest.TestCase):
  """DeepSeek-V3, section 4.2, from configs/v3_671b.py."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.config = from_config_dict(load_config('v3_671b'))
    cls.schedule = Schedule(cls.config)

  def _just(self, tokens: float) -> tuple[int, int]:
    """The last step that begins before so many tokens, and the one after."""
    step = self.schedule.step_at(int(tokens))
    return step - 1, step

  def test_length(self):
    last, end = self._just(14.8e12)
    self.assertEqual(self.config.train.steps, end)
    self.assertGreater(self.schedule.learning_rate(last), 0)

  def test_batch_grows_from_3072_to_15360_sequences_over_469b_tokens(self):
    sequences = [self.schedule.batch_tokens(k) / 4096 for k in (0, 10**5)]
    self.assertEqual(sequences, [3072, 15360])
    before, after = self._just(469e9)
    self.assertLess(self.schedule.batch_tokens(before), 15360 * 4096)
    self.assertEqual(self.schedule.batch_tokens(after), 15360 * 4096)
    middle = self.schedule.batch_tokens(self.schedule.step_at(int(234.5e9)))
    self.assertAlmostEqual(middle / 4096, 9216, delta=128)

  def test_learning_rate(self):
    rate = self.schedule.learning_rate
    self.assertAlmostEqual(rate(0), 2.2e-4 / 2000, delta=1e-15)
    self.assertAlmostEqual(rate(999), 1.1e-4, delta=1e-12)
    self.assertAlmostEqual(rate(1999), 2.2e-4, delta=1e-12)
    for step in self._just(10e12):
      self.assertAlmostEqual(rate(step), 2.2e-4, delta=1e-12)
    middle = self.schedule.step_at(int(12.15e12))
    self.assertAlmostEqual(rate(middle), (2.2e-4 + 2.2e-5) / 2, delta=1e-8)
    self.assertAlmostEqual(
      rate(self.schedule.step_at(int(14.3e12))), 2.2e-5, delta=1e-12
    )
    last_of_final, first_of_last = self._just(14.3e12 + 333e9)
    self.assertAlmostEqual(rate(last_of_final), 2.2e-5, delta=1e-12)
    self.assertEqual(rate(first_of_last), 7.3e-6)

  def test_gamma_and_lambda(self):
    before, after = self._just(14.3e12)
    self.assertEqual(self.schedule.bias_update_rate(before), 1e-3)
    self.assertEqual(self.schedule.bias_update_rate(after), 0.0)
    before, after = self._just(10e12)
    self.assertEqual(self.schedule.mtp_weight(before), 0.3)
    self.assertEqual(self.schedule.mtp_weight(after), 0.1)


class ScaledTest(parameterized.TestCase):
  @parameterized.parameters(
    ('v3_16b', 5.7e12), ('v3_1b', 20e9), ('v3_100m', 2e9)
  )
  def test_phases_stand_in_the_papers_proportions(self, name, tokens):
    schedule = Schedule(from_config_dict(load_config(name)))
    config = schedule.config
    self.assertEqual(config.train.steps, schedule.step_at(int(tokens)))
    first, full = schedule.batch_tokens(0), schedule.batch_tokens(10**9)
    self.assertAlmostEqual(first / full, 1 / 5, delta=0.03)
    optim = config.optim
    for share, value in (
      (10 / 14.8, optim.constant_tokens),
      (4.3 / 14.8, optim.decay_tokens),
      (0.333 / 14.8, optim.final_tokens),
      (0.469 / 14.8, config.train.ramp_tokens),
      (14.3 / 14.8, config.train.bias_update_tokens),
    ):
      self.assertAlmostEqual(value / tokens, share, delta=1e-6)


if __name__ == '__main__':
  absltest.main()
