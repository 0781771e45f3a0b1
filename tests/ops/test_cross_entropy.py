"""Laws of the chunked cross-entropy."""

import functools
from unittest import mock

from absl.testing import absltest, parameterized
from hypothesis import given, strategies
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases, sweeps
from reference import cross_entropy as oracle
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


# The logits' gradients are rounded, then the hidden states', before and after
# they are multiplied by the cotangent. The value is float32 throughout.
_GRADIENTS = sweeps.bounds(3)


@functools.partial(cases.jit, static_argnums=(0, 1))
def _sums_and_gradients(chunk, z_weight, hidden, head, targets, weights):
  def run(hidden, head):
    sums = cross_entropy.loss_sums(hidden, head, targets, weights, z_weight)
    return 3 * sums.objective, sums

  with mock.patch.object(cross_entropy, 'LARGEST_CHUNK', chunk):
    return jax.grad(run, argnums=(0, 1), has_aux=True)(hidden, head)


class SweepTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 0.0, 'float32'),
    (8, 0.3, 'float32'),
    (19, 0.0, 'float32'),
    (1024, 1e-4, 'float32'),
    (8, 0.0, 'bfloat16'),
    (8, 0.3, 'bfloat16'),
  )
  @sweeps.SWEEP
  @given(
    seed=sweeps.seeds,
    weights=strategies.lists(
      strategies.sampled_from((0.0, 0.25, 1.0, 2.0)), min_size=19, max_size=19
    ),
    size=strategies.sampled_from((0.1, 1.0, 5.0)),
  )
  def test_any_weights(self, chunk, z_weight, dtype, seed, weights, size):
    rng = np.random.default_rng(seed)
    # Padded to three chunks of 8.
    hidden = sweeps.normal(rng, dtype, 19, 6)
    head = (size * rng.standard_normal((6, 11))).astype(sweeps.DTYPES[dtype])
    targets = rng.integers(0, 11, 19).astype(np.int32)
    weights = np.array(weights, np.float32)
    gradients, sums = _sums_and_gradients(
      chunk, z_weight, hidden, head, targets, weights
    )
    exact = (*sweeps.float64(hidden, head), targets, np.float64(weights))
    plain, z = oracle.sums(*exact)
    bound = sweeps.FLOAT32_BOUND
    self.assertLess(cases.difference(sums.cross_entropy, plain), bound)
    self.assertLess(
      cases.difference(sums.squared_log_z, z if z_weight else 0), bound
    )
    self.assertLess(
      cases.difference(sums.objective, plain + z_weight * z), bound
    )
    for a, e in zip(gradients, oracle.gradients(*exact, z_weight), strict=True):
      self.assertEqual(a.dtype, sweeps.DTYPES[dtype])
      self.assertLess(cases.difference(a, 3 * e), _GRADIENTS[dtype])
    self.assertFalse(np.any(np.asarray(gradients[0], np.float32)[weights == 0]))

  def test_results_do_not_depend_on_the_chunk(self):
    results = [
      _sums_and_gradients(chunk, 0.3, *_inputs()) for chunk in (1, 7, 8, 1024)
    ]
    for other in results[1:]:
      for a, b in zip(*map(jax.tree.leaves, (other, results[0])), strict=True):
        self.assertLess(cases.difference(a, b), 2e-6)

  def test_hidden_states_without_weight_change_nothing(self):
    """However large. Not NaN: they are multiplied by 0, not skipped."""
    hidden, head, targets, weights = _inputs()
    results = []
    for poison in (0, 1e9):
      # A copy: a jitted call may still be reading the array it was given.
      poisoned = np.where(weights[:, None] == 0, np.float32(poison), hidden)
      results.append(
        _sums_and_gradients(8, 0.3, poisoned, head, targets, weights)
      )
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
      np.testing.assert_array_equal(a, b)

  def test_gradients_by_hand_are_slopes(self):
    hidden, head, targets, weights = _inputs()
    inputs = sweeps.float64(hidden, head)
    rest = targets, np.float64(weights)
    for index, gradient in enumerate(oracle.gradients(*inputs, *rest, 0.3)):
      direction = np.random.default_rng(1).standard_normal(gradient.shape)
      values = []
      for step in (1e-5, -1e-5):
        moved = list(inputs)
        moved[index] = inputs[index] + step * direction
        plain, z = oracle.sums(*moved, *rest)
        values.append(plain + 0.3 * z)
      slope = (values[0] - values[1]) / 2e-5
      along = np.sum(gradient * direction)
      self.assertAlmostEqual(along / slope, 1, delta=1e-6)


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
    hidden, head, targets, weights = inputs
    hidden, head, weights = sweeps.float64(hidden, head, weights)
    plain, z = oracle.sums(hidden, head, targets, weights)
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
