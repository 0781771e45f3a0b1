"""Public functions are pure: they compose with jit, grad, vmap and scan."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig
from seekax.inference import engine, sampling, scoring
from seekax.model.parameters import init_weights
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights
from seekax.training.losses import loss_sums
from seekax.training.schedules import Schedule
from seekax.training.state import start_from
from seekax.training.step import one_device_step

_MODEL = Transformer(cases.LLAMA)
_STEPS = 3


def _weights() -> Weights:
  return Weights(*cases.weights(cases.LLAMA, 1))


class InferenceTest(absltest.TestCase):
  def test_logits_in_a_loss_in_a_gradient_in_a_program(self):
    tokens = cases.batch(cases.LLAMA).tokens_BL

    @jax.jit
    @jax.grad
    def gradient(weights):
      logits, _ = scoring.all_logits(_MODEL, weights, tokens)
      return jnp.square(logits).mean()

    for x in jax.tree.leaves(gradient(_weights())):
      self.assertTrue(np.isfinite(x).all())

  def test_likelihoods_of_several_weights_at_once(self):
    rows = cases.batch(cases.LLAMA)
    several = jax.tree.map(
      lambda x: jnp.stack([x, 1.01 * x]).astype(x.dtype), _weights()
    )

    def score(weights):
      return scoring.target_log_probabilities(
        _MODEL, weights, rows.tokens_BL, rows.targets_BL
      ).sum()

    both = jax.jit(jax.vmap(score))(several)
    first = jax.jit(score)(_weights())
    np.testing.assert_allclose(both[0], first, rtol=1e-5)
    self.assertNotEqual(float(both[0]), float(both[1]))

  def test_decoding_is_the_body_of_a_scan(self):
    prompt = np.array([3, 17, 8, 3], np.int32)
    how = sampling.settings(1)

    @jax.jit
    def continued(weights):
      logits, cache = engine.prefill(
        _MODEL, weights, prompt[None], jnp.array([4]), 16
      )
      first, keys = sampling.sample(sampling.keys([0]), logits, how)

      def one(carry, _):
        token, cache, keys = carry
        logits, cache = engine.decode(_MODEL, weights, token, cache)
        following, keys = sampling.sample(keys, logits, how)
        return (following, cache, keys), token[0]

      return jax.lax.scan(one, (first, cache, keys), None, length=6)[1]

    expected = list(engine.generate(_MODEL, _weights(), prompt, 6))
    self.assertEqual(continued(_weights()).tolist(), expected)


class TrainingTest(absltest.TestCase):
  def test_steps_are_the_body_of_a_scan(self):
    config = Config(
      model=cases.LLAMA,
      data=DataConfig(sequence_length=cases.LENGTH, batch_size=cases.BATCH),
      optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
      train=TrainConfig(steps=_STEPS, precision='float32'),
    )
    batch, schedule = cases.batch(cases.LLAMA), Schedule(config)
    rates = jax.tree.map(
      lambda *x: jnp.stack(x), *(schedule.rates(k) for k in range(_STEPS))
    )

    @jax.jit
    def trained(weights):
      def one(state, rates):
        state, metrics = one_device_step(config, state, batch, rates)
        return state, metrics.loss

      return jax.lax.scan(one, start_from(config, weights), rates)

    state, losses = trained(init_weights(cases.LLAMA, 0))
    self.assertEqual(int(state.step), _STEPS)
    self.assertLess(float(losses[-1]), float(losses[0]))
    total, sums = jax.jit(lambda w: loss_sums(w, batch, config))(state.weights)
    self.assertTrue(np.isfinite(total))
    self.assertLess(float(sums.main / sums.tokens), float(losses[-1]))


if __name__ == '__main__':
  absltest.main()
