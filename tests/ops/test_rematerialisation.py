"""Laws of what is kept for the backward pass."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from reference import cases
from seekax.machine import compiling
from seekax.ops.grouped_matmul import grouped_swiglu
from seekax.ops.rematerialisation import (
  keep,
  paper_policy,
  recomputed_in_turn,
)

_LAYERS, _WIDTH = 6, 64


def _layer(w, x, count):
  """Keeps the narrow product under the paper's policy; `count` is an int."""
  narrow = keep(x @ w['down'], 'query_latent')
  wide = jnp.sin(jnp.cos(narrow @ w['up']))
  return x + wide @ w['out'] * count, narrow.sum()


def _loss(layer, weights, x, count):
  total = 0.0
  for w in weights:
    x, part = layer(w, x, count)
    total += part
  return total + jnp.sum(x * x)


def _inputs():
  rng = np.random.default_rng(0)

  def draw(*shape):
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)

  shapes = {'down': (_WIDTH, 8), 'up': (8, 512), 'out': (512, _WIDTH)}
  weights = [
    {name: draw(*shape) for name, shape in shapes.items()}
    for _ in range(_LAYERS)
  ]
  return weights, draw(1024, _WIDTH), np.int32(2)


class KeepTest(absltest.TestCase):
  def test_a_name_that_is_never_kept_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'quary'):
      keep(jnp.zeros(3), 'quary')

  def test_nothing_else_changes(self):
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(keep(x, 'query'), x)


class PolicyTest(absltest.TestCase):
  def test_paper_keeps_both_products_of_a_fused_kernel(self):
    """And nothing else of it but the order of the rows."""
    gates_TA = jnp.ones((16, 2))
    experts_TA = jnp.tile(jnp.array([[0, 1]]), (16, 1))

    def experts(x_TD, *weights):
      return grouped_swiglu(
        jnp.sin(x_TD),
        gates_TA,
        experts_TA,
        *weights,
        backend='pallas',
        interpret=True,
      )

    shapes = (16, 32), (4, 32, 48), (4, 32, 48), (4, 48, 32)
    arguments = [jnp.ones(shape) for shape in shapes]
    function = jax.checkpoint(experts, policy=paper_policy)
    _, pullback = jax.vjp(function, *arguments)
    kept = [x.shape for x in jax.tree.leaves(pullback)]
    for shape in (*shapes, gates_TA.shape, experts_TA.shape):
      kept.remove(shape)
    self.assertCountEqual(kept, [(32, 48), (32, 48), (32,)])


class InTurnTest(absltest.TestCase):
  def _forms(self):
    layers = [_layer]
    layers += [recomputed_in_turn(_layer, p) for p in (paper_policy, None)]
    return [
      compiling.jit(jax.value_and_grad(lambda *a, f=f: _loss(f, *a), (0, 1)))
      for f in layers
    ]

  def test_values_and_gradients_are_the_same(self):
    plain, *others = (form(*_inputs()) for form in self._forms())
    for other in others:
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4),
        other,
        plain,
      )

  def test_memory_is_less(self):
    none, paper, full = (
      cases.temporaries(form.lower(*_inputs()).compile())
      for form in self._forms()
    )
    self.assertLess(paper, 0.5 * none)
    self.assertLess(full, 0.5 * none)


if __name__ == '__main__':
  absltest.main()
