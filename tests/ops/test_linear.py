"""Products with a weight and the SwiGLU, with gradients written by hand."""

from absl.testing import absltest, parameterized
from hypothesis import given
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases, sweeps
from reference import experts as oracle
from reference.sweeps import float64, normal
from seekax.ops import linear as ops

# One rounding of the result; of the SwiGLU also those of both products, of the
# hidden rows, of their gradients and of both branches'.
_PRODUCT = sweeps.bounds(1)
_SWIGLU = sweeps.bounds(5)


def _plain_swiglu(x, gate, up, down):
  hidden = jax.nn.silu((x @ gate).astype(jnp.float32))
  hidden *= (x @ up).astype(jnp.float32)
  return hidden.astype(x.dtype) @ down


# Of every function: its like in plain JAX, shapes of x and weights.
_FUNCTIONS = {
  'one_axis': (
    ops.linear,
    lambda x, w: jnp.einsum('BLD,DF->BLF', x, w),
    ((2, 9, 6), (6, 7)),
  ),
  'two_axes_out': (
    ops.linear,
    lambda x, w: jnp.einsum('LD,DHK->LHK', x, w),
    ((9, 6), (6, 3, 5)),
  ),
  'two_axes_in': (
    lambda x, w: ops.contract(x, w, 2),
    lambda x, w: jnp.einsum('BLHK,HKD->BLD', x, w),
    ((2, 9, 3, 5), (3, 5, 7)),
  ),
  'one_vector': (
    ops.linear,
    lambda x, w: jnp.einsum('D,DF->F', x, w),
    ((6,), (6, 7)),
  ),
  'swiglu': (
    ops.swiglu,
    _plain_swiglu,
    ((19, 6), (6, 7), (6, 7), (7, 6)),
  ),
}


def _vjp(function):
  def run(dy, *args):
    out, pullback = jax.vjp(function, *args)
    return out, *pullback(dy)

  return cases.jit(run)


_RUN = {name: _vjp(both[0]) for name, both in _FUNCTIONS.items()}
_PLAIN = {name: _vjp(both[1]) for name, both in _FUNCTIONS.items()}


def _inputs(name, dtype, seed):
  """(cotangent, x, weights ...)."""
  rng = np.random.default_rng(seed)
  _, plain, shapes = _FUNCTIONS[name]
  args = [normal(rng, dtype, *shape) for shape in shapes]
  return normal(rng, dtype, *jax.eval_shape(plain, *args).shape), *args


class LinearTest(parameterized.TestCase):
  @parameterized.product(
    name=tuple(x for x in _FUNCTIONS if x != 'swiglu'),
    dtype=tuple(sweeps.DTYPES),
  )
  @sweeps.SWEEP
  @given(seed=sweeps.seeds)
  def test_products_and_gradients_match_float64(self, name, dtype, seed):
    inputs = _inputs(name, dtype, seed)
    actual = _RUN[name](*inputs)
    dy, x, w = float64(*inputs)
    axes = x.ndim + w.ndim - dy.ndim >> 1
    width = np.prod(w.shape[:axes])
    x_TD, w_DF = x.reshape(-1, width), w.reshape(width, -1)
    dy_TF = dy.reshape(len(x_TD), -1)
    expected = x_TD @ w_DF, dy_TF @ w_DF.T, x_TD.T @ dy_TF
    for a, e, like in zip(actual, expected, (dy, x, w), strict=True):
      self.assertEqual(a.dtype, sweeps.DTYPES[dtype])
      bound = _PRODUCT[dtype]
      self.assertLess(cases.difference(a, e.reshape(like.shape)), bound)

  @parameterized.parameters(*sweeps.DTYPES)
  @sweeps.SWEEP
  @given(seed=sweeps.seeds)
  def test_swiglu_and_gradients_match_oracle(self, dtype, seed):
    inputs = _inputs('swiglu', dtype, seed)
    actual = _RUN['swiglu'](*inputs)
    dy, x, *weights = float64(*inputs)
    # A mixture of one expert.
    one = (
      x,
      np.ones((19, 1)),
      np.zeros((19, 1), int),
      *(w[None] for w in weights),
    )
    dx, _, *dweights = oracle.grouped_swiglu_gradients(*one, dy)
    expected = oracle.grouped_swiglu(*one), dx, *(dw[0] for dw in dweights)
    for a, e in zip(actual, expected, strict=True):
      self.assertEqual(a.dtype, sweeps.DTYPES[dtype])
      self.assertLess(cases.difference(a, e), _SWIGLU[dtype])

  @parameterized.product(name=tuple(_FUNCTIONS), dtype=tuple(sweeps.DTYPES))
  @sweeps.SWEEP
  @given(seed=sweeps.seeds)
  def test_gradients_are_those_that_jax_derives(self, name, dtype, seed):
    inputs = _inputs(name, dtype, seed)
    # Both are that far from the exact ones, at most.
    bound = 2 * (_SWIGLU if name == 'swiglu' else _PRODUCT)[dtype]
    for a, e in zip(_RUN[name](*inputs), _PLAIN[name](*inputs), strict=True):
      self.assertEqual(a.dtype, e.dtype)
      self.assertLess(cases.difference(a, e), bound)


if __name__ == '__main__':
  absltest.main()
