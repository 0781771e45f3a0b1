"""Laws of the chunked cross-entropy."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases
from reference.layers import log_softmax
from seekax.ops import cross_entropy


def _inputs(tokens=19, width=6, vocabulary=11, seed=0):
  rng = np.random.default_rng(seed)
  hidden = rng.standard_normal((tokens, width)).astype(np.float32)
  head = rng.standard_normal((width, vocabulary)).astype(np.float32)
  targets = rng.integers(0, vocabulary, tokens).astype(np.int32)
  weights = rng.uniform(0, 2, tokens).astype(np.float32)
  weights[::3] = 0
  return hidden, head, targets, weights


def _plain(hidden, head, targets, weights):
  log_probabilities = jax.nn.log_softmax(hidden @ head, axis=1)
  chosen = jnp.take_along_axis(log_probabilities, targets[:, None], axis=1)
  return -jnp.sum(chosen[:, 0] * weights)


def _value_and_gradients(function, chunk):
  """Of 3 times the function, so that the cotangent isn't 1."""

  def run(hidden, head, targets, weights):
    return 3 * function(hidden, head, targets, weights)

  with mock.patch.object(cross_entropy, 'LARGEST_CHUNK', chunk):
    return cases.jit(jax.value_and_grad(run, argnums=(0, 1)))(*_inputs())


class CrossEntropyTest(parameterized.TestCase):
  @parameterized.parameters(1, 8, 19, 1024)
  def test_value_and_gradients_match_the_plain_formula(self, chunk):
    value, gradients = _value_and_gradients(
      cross_entropy.cross_entropy_sum, chunk
    )
    expected, expected_gradients = _value_and_gradients(_plain, chunk)
    self.assertLess(cases.difference(value, expected), 1e-6)
    for name, a, e in zip(
      ('hidden', 'head'), gradients, expected_gradients, strict=True
    ):
      self.assertLess(cases.difference(a, e), 1e-5, name)

  @parameterized.product(chunk=(8, 1024), z_weight=(0.0, 1e-4, 0.3))
  def test_z_loss_and_its_gradients_match_the_plain_formula(
    self, chunk, z_weight
  ):
    def chunked(*inputs):
      return cross_entropy.loss_sums(*inputs, z_weight).objective

    def plain(hidden, head, targets, weights):
      log_z = jax.nn.logsumexp(hidden @ head, axis=1)
      z_loss = z_weight * jnp.sum(log_z**2 * weights)
      return _plain(hidden, head, targets, weights) + z_loss

    value, gradients = _value_and_gradients(chunked, chunk)
    expected, expected_gradients = _value_and_gradients(plain, chunk)
    self.assertLess(cases.difference(value, expected), 1e-6)
    for a, e in zip(gradients, expected_gradients, strict=True):
      self.assertLess(cases.difference(a, e), 1e-5)

  @parameterized.parameters(False, True)
  def test_the_parts_of_the_z_loss_match_the_oracle(self, with_gradient):
    """In float64, by the forward pass alone and by the sweep for gradients."""
    inputs, z_weight = _inputs(), 0.3

    def run(*inputs):
      sums = cross_entropy.loss_sums(*inputs, z_weight)
      return sums.objective, sums

    if with_gradient:
      (_, sums), _ = cases.jit(jax.value_and_grad(run, has_aux=True))(*inputs)
    else:
      _, sums = cases.jit(run)(*inputs)
    hidden, head, targets, weights = (np.asarray(x, np.float64) for x in inputs)
    plain, z = 0.0, 0.0
    for i, weight in enumerate(weights):
      logits = hidden[i] @ head
      plain -= weight * log_softmax(logits)[int(targets[i])]
      z += weight * np.log(np.exp(logits).sum()) ** 2
    self.assertLess(cases.difference(sums.cross_entropy, plain), 1e-6)
    self.assertLess(cases.difference(sums.squared_log_z, z), 1e-6)
    self.assertLess(cases.difference(sums.objective, plain + 0.3 * z), 1e-6)

  def test_parts_are_reported_and_not_trained_on(self):
    def parts(*inputs):
      sums = cross_entropy.loss_sums(*inputs, 0.3)
      return sums.cross_entropy + sums.squared_log_z

    gradients = cases.jit(jax.grad(parts, argnums=(0, 1)))(*_inputs())
    for gradient in gradients:
      self.assertEqual(np.abs(gradient).max(), 0)

  def test_value_without_gradient_is_the_same(self):
    inputs = _inputs()
    with mock.patch.object(cross_entropy, 'LARGEST_CHUNK', 8):
      value = cases.jit(lambda *x: cross_entropy.cross_entropy_sum(*x))(*inputs)
    self.assertLess(cases.difference(value, _plain(*inputs)), 1e-6)

  def test_weight_zero_means_no_gradient(self):
    hidden_gradient = _value_and_gradients(cross_entropy.cross_entropy_sum, 8)[
      1
    ][0]
    self.assertEqual(np.abs(hidden_gradient[::3]).max(), 0)
    self.assertGreater(np.abs(hidden_gradient[1::3]).min(), 0)

  @parameterized.parameters(8, 1024)
  def test_log_probabilities_match_oracle(self, chunk):
    hidden, head, targets, _ = _inputs()
    with mock.patch.object(cross_entropy, 'LARGEST_CHUNK', chunk):
      actual = cases.jit(lambda *x: cross_entropy.log_probabilities(*x))(
        hidden, head, targets
      )
    logits = hidden.astype(np.float64) @ head
    expected = [
      log_softmax(row)[target]
      for row, target in zip(logits, targets, strict=True)
    ]
    self.assertLess(cases.difference(actual, expected), 1e-6)

  def test_huge_logits_stay_finite(self):
    hidden, head, targets, weights = _inputs()
    value, gradients = cases.jit(
      jax.value_and_grad(cross_entropy.cross_entropy_sum, argnums=(0, 1))
    )(1e4 * hidden, head, targets, weights)
    for x in (value, *gradients):
      self.assertTrue(np.isfinite(x).all())

  def test_bfloat16_inputs_lose_nothing_in_the_sum(self):
    """Loss and head gradient are summed in float32."""
    hidden, head, targets, weights = _inputs(tokens=600)
    hidden, head = jnp.bfloat16(hidden), jnp.bfloat16(head)
    value = cases.jit(cross_entropy.cross_entropy_sum)(
      hidden, head, targets, weights
    )
    self.assertEqual(value.dtype, jnp.float32)
    exact = _plain(jnp.float32(hidden), jnp.float32(head), targets, weights)
    self.assertLess(cases.difference(value, exact), 1e-5)


if __name__ == '__main__':
  absltest.main()
