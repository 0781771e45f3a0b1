"""The adapters to tokamax, with those of its forms that run on a CPU."""

import unittest

from absl.testing import absltest, parameterized
import jax
import numpy as np

from reference import attention as attention_oracle
from reference import cases
from reference import experts as oracle
from seekax.ops import attention, tokamax_backends, versions

_INSTALLED = versions.tokamax() != ()


@unittest.skipUnless(_INSTALLED, 'tokamax is not installed')
class TokamaxTest(parameterized.TestCase):
  @parameterized.parameters(
    ((8, 8, 8, 8), True),
    ((0, 32, 0, 0), True),
    ((3, 0, 17, 5), False),
    ((0, 0, 0, 0), False),
  )
  def test_grouped_products_match_oracle(self, sizes, complete):
    rng = np.random.default_rng(0)
    rows, dy = (
      rng.standard_normal((32, width)).astype(np.float32) for width in (6, 10)
    )
    weights = rng.standard_normal((4, 6, 10)).astype(np.float32)
    exact = [np.float64(x) for x in (rows, weights, dy)]
    rows[sum(sizes) :], dy[sum(sizes) :] = np.nan, np.nan
    sizes = np.array(sizes, np.int32)

    def run(rows, weights):
      return tokamax_backends.grouped_matmul(
        rows, weights, sizes, 'xla', complete=complete
      )

    out, pullback = jax.vjp(run, rows, weights)
    expected = (
      oracle.grouped_matmul(*exact[:2], sizes),
      *oracle.grouped_matmul_gradients(*exact[:2], sizes, exact[2]),
    )
    for a, e in zip((out, *pullback(dy)), expected, strict=True):
      self.assertLess(cases.difference(a, e), 1e-5)

  @parameterized.product(
    isolate=(False, True), implementation=('xla_chunked', 'xla')
  )
  def test_attention_matches_oracle(self, isolate, implementation):
    rng = np.random.default_rng(1)
    q, k, v = (
      rng.standard_normal((2, 20, count, width)).astype(np.float32)
      for count, width in ((4, 6), (2, 6), (2, 5))
    )
    segments = np.sort(rng.integers(0, 3, (2, 20))) if isolate else None

    def run(q, k, v):
      return tokamax_backends.causal_attention(
        q, k, v, 0.37, segments, implementation
      )

    out, pullback = jax.vjp(run, q, k, v)
    for row in range(2):
      expected = attention_oracle.attend(
        *(np.float64(x[row]) for x in (q, k, v)),
        0.37,
        None if segments is None else segments[row],
      )
      self.assertLess(cases.difference(out[row], expected), 1e-5)
    dout = rng.standard_normal(out.shape).astype(np.float32)
    _, ours = jax.vjp(
      lambda *x: attention.causal_attention(*x, 0.37, segments), q, k, v
    )
    for a, b in zip(pullback(dout), ours(dout), strict=True):
      self.assertLess(cases.difference(a, b), 1e-5)


if __name__ == '__main__':
  absltest.main()
