"""Laws of the whole model."""

import dataclasses
import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases
from seekax.configuration.compute import ComputeConfig
from seekax.model.parameters import cast_params
from seekax.model.transformer import shift_left, Transformer

_SEEDS = {'v3': 1, 'v2': 1, 'moonlight': 1, 'llama': 1}


def _logits(sequences):
  return np.stack([s.logits_LV for s in sequences])


def _mtp_logits(sequences, k):
  return np.stack([s.mtp_logits[k] for s in sequences])


class ForwardTest(parameterized.TestCase):
  @parameterized.product(name=tuple(cases.MODELS), bias_spread=(0.3, 5.0))
  def test_logits_and_load_match_oracle(self, name, bias_spread):
    config = cases.MODELS[name]
    params, bias = cases.weights(config, _SEEDS[name], bias_spread)
    rows = cases.batch(config)
    actual = cases.run(config, params, bias, rows, rows.segments_BL)
    expected = cases.run_oracle(config, params, bias, rows, rows.segments_BL)
    margin = min(s.margin for s in expected)
    self.assertGreater(margin, 1e-5, 'near-tie: take another seed')
    self.assertLess(
      cases.difference(actual.logits_BLV, _logits(expected)), 1e-5
    )
    self.assertLen(actual.mtp_logits, config.mtp_depth)
    for k in range(config.mtp_depth):
      self.assertLess(
        cases.difference(actual.mtp_logits[k], _mtp_logits(expected, k)), 1e-5
      )
    for key, load in (('layers', actual.load), ('mtp', actual.mtp_load)):
      if load is None:
        continue
      counts = sum(s.load(key, config.num_experts) for s in expected)
      np.testing.assert_array_equal(load.count_E, counts)

  def test_no_segments_is_one_document(self):
    config, rows = cases.LLAMA, cases.batch(cases.LLAMA)
    params, bias = cases.weights(config)
    plain = cases.run(config, params, bias, rows, None)
    one = np.ones_like(rows.segments_BL)
    same = cases.run(config, params, bias, rows, one)
    self.assertLess(cases.difference(plain.logits_BLV, same.logits_BLV), 1e-6)
    expected = cases.run_oracle(config, params, bias, rows, None)
    self.assertLess(cases.difference(plain.logits_BLV, _logits(expected)), 1e-5)

  def test_one_depth_is_the_first_of_two(self):
    config = cases.V3
    params, bias = cases.weights(config, 1)
    rows = cases.batch(config)
    two = cases.run(config, params, bias, rows, rows.segments_BL)
    one = cases.V3_ONE_MTP
    params = {k: v for k, v in params.items() if k != 'mtp_1'}
    bias = dict(bias, mtp=bias['mtp'][:1])
    first = cases.run(one, params, bias, rows, rows.segments_BL)
    self.assertLen(first.mtp_logits, 1)
    self.assertLess(
      cases.difference(first.mtp_logits[0], two.mtp_logits[0]), 1e-6
    )
    self.assertLess(cases.difference(first.logits_BLV, two.logits_BLV), 1e-6)

  @parameterized.parameters('hidden_first', 'before_norm')
  def test_mtp_mistake_would_be_noticed(self, mistake):
    config = cases.V3
    params, bias = cases.weights(config, 1)
    rows = cases.batch(config)
    actual = cases.run(config, params, bias, rows, rows.segments_BL)
    wrong = cases.run_oracle(
      config, params, bias, rows, rows.segments_BL, **{mistake: True}
    )
    for k in range(2):
      difference = cases.difference(actual.mtp_logits[k], _mtp_logits(wrong, k))
      self.assertGreater(difference, 1e-2)


class SwitchesTest(parameterized.TestCase):
  @parameterized.parameters(
    {'unroll_layers': 0},
    {'remat': 'paper'},
    {'remat': 'full'},
    {'grouped_matmul': 'dense'},
    {'grouped_matmul': 'ragged'},
  )
  def test_how_it_is_computed_does_not_change_results(self, **switches):
    config = cases.V3_ONE_MTP
    params, bias = cases.weights(config, 1)
    rows = cases.batch(config)
    plain = cases.run(config, params, bias, rows, rows.segments_BL)
    compute = ComputeConfig(**switches)
    other = cases.run(config, params, bias, rows, rows.segments_BL, compute)
    np.testing.assert_array_equal(other.load.count_E, plain.load.count_E)
    self.assertLess(cases.difference(other.logits_BLV, plain.logits_BLV), 1e-6)
    for a, b in zip(other.mtp_logits, plain.mtp_logits, strict=True):
      self.assertLess(cases.difference(a, b), 2e-6)


class Bfloat16Test(absltest.TestCase):
  def test_bfloat16_stays_near_float32(self):
    """Within 3 % of the logits' spread, where no choice of experts flips."""
    config = cases.V3_ONE_MTP
    params, bias = cases.weights(config, 1, bias_spread=5.0)
    rows = cases.batch(config)
    exact = cases.run(config, params, bias, rows, rows.segments_BL)
    cast = cast_params(params, jnp.bfloat16)
    rough = cases.run(config, cast, bias, rows, rows.segments_BL)
    self.assertEqual(rough.hidden_BLD.dtype, jnp.bfloat16)
    self.assertEqual(rough.logits_BLV.dtype, jnp.float32)
    np.testing.assert_array_equal(rough.load.count_E, exact.load.count_E)
    pairs = [(rough.logits_BLV, exact.logits_BLV)]
    pairs += zip(rough.mtp_logits, exact.mtp_logits, strict=True)
    for actual, expected in pairs:
      error = np.asarray(actual - expected).std() / np.asarray(expected).std()
      self.assertLess(error, 0.03)
      self.assertGreater(error, 1e-4)  # it is bfloat16


@functools.partial(cases.jit, static_argnums=0)
def _sensitivity(config, params, bias, rows):
  """[outputs, positions, tokens]: gradient of each position by each token.

  Every token stands once in the row, so that a row of the embedding's table is
  a position of the input. The outputs are the trunk's and every MTP depth's.
  """

  def probe(table, pull):
    moved = dict(params, embedding={'table': table})
    hidden = _hidden(config, moved, bias, rows)
    # No symmetric function: the norm keeps a plain sum of squares constant.
    return jnp.sum(hidden * pull)

  pull = jax.random.normal(jax.random.key(0), (config.embed_dim,))
  outputs, length = config.mtp_depth + 1, rows.tokens_BL.shape[1]
  pulls = jnp.einsum('PQ,D->PQD', jnp.eye(outputs * length), pull).reshape(
    -1, outputs, length, config.embed_dim
  )
  gradients = jax.lax.map(
    lambda p: jax.grad(probe)(params['embedding']['table'], p), pulls
  )
  size = jnp.abs(gradients).max(axis=-1)
  return size.reshape(outputs, length, -1)


def _hidden(config, params, bias, rows):
  """[outputs, L, D] of the only row."""
  model, variables = Transformer(config), {'params': params}
  trunk = model.apply(variables, rows.tokens_BL, rows.positions_BL, None, bias)
  further, _ = model.apply(
    variables,
    trunk.hidden_BLD,
    rows.targets_BL,
    rows.positions_BL,
    None,
    bias,
    method='predict_further',
  )
  return jnp.stack([trunk.hidden_BLD[0], *(h[0] for h in further)])


class CausalityTest(parameterized.TestCase):
  @parameterized.parameters(cases.V3_ONE_MTP, cases.LLAMA)
  def test_no_future_leak(self, config):
    """Position i sees tokens up to i; at MTP depth k up to i + k."""
    params, bias = cases.weights(config, 1)
    length = cases.LENGTH
    rows = jax.tree.map(lambda x: x[:1], cases.batch(config))
    # Token i + 1 at position i; token 0 is what a missing one reads.
    rows = rows.replace(
      tokens_BL=np.arange(1, length + 1, dtype=np.int32)[None],
      targets_BL=np.arange(2, length + 2, dtype=np.int32)[None],
    )
    sensitivity = np.asarray(_sensitivity(config, params, bias, rows))
    for k in range(config.mtp_depth + 1):
      for i in range(length):
        last = i + 1 + k  # the token at position i + k
        seen = sensitivity[k, i, 1 : last + 1][: length + 1]
        unseen = sensitivity[k, i, last + 1 :]
        self.assertGreater(seen.min(), 1e-6, f'depth {k}, position {i}')
        self.assertEqual(unseen.max(initial=0), 0, f'depth {k}, position {i}')

  def test_later_tokens_change_no_choice_and_no_output(self):
    """The gradient doesn't see through choices of experts; values do."""
    config = cases.V3
    params, bias = cases.weights(config, 1)
    rows = cases.batch(config)
    other = cases.batch(config, seed=7)
    cut = 7
    tokens, targets = rows.tokens_BL.copy(), rows.targets_BL.copy()
    tokens[:, cut:] = other.tokens_BL[:, cut:]
    targets[:, cut - 1 :] = other.targets_BL[:, cut - 1 :]
    changed = dataclasses.replace(rows, tokens_BL=tokens, targets_BL=targets)
    one = np.ones_like(rows.segments_BL)
    before = cases.run(config, params, bias, rows, one)
    after = cases.run(config, params, bias, changed, one)
    self.assertLess(
      cases.difference(after.logits_BLV[:, :cut], before.logits_BLV[:, :cut]),
      1e-6,
    )
    for k in (1, 2):
      a, b = after.mtp_logits[k - 1], before.mtp_logits[k - 1]
      self.assertLess(cases.difference(a[:, : cut - k], b[:, : cut - k]), 1e-6)
      self.assertGreater(cases.difference(a[:, cut - k], b[:, cut - k]), 1e-2)


class ShiftTest(absltest.TestCase):
  def test_shift_left(self):
    x = np.array([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(shift_left(x, 0), x)
    np.testing.assert_array_equal(shift_left(x, 2), [[3, 0, 0], [6, 0, 0]])


if __name__ == '__main__':
  absltest.main()
