"""AdamW and Muon, with clipping and with weight decay by parameter name."""

import math

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from seekax.arrays import PyTree
from seekax.configuration.optim import OptimConfig
from seekax.ops.reductions import sum_of_squares
from seekax.parallel.mesh import current_sizes

# Leading axes that number matrices: layers in these stacks, and experts.
_STACKS = ('dense_layers', 'expert_layers')
_PER_EXPERT = ('gate', 'up', 'down')
# Muon excludes tables of one vector per token or per expert, and norms.
_NOT_MATRICES = ('embedding', 'head', 'router', 'scale')
# Decay of Muon's momentum, and the root mean square of its updates, which a
# learning rate for AdamW then fits.
_MUON_MOMENTUM, _MUON_RMS = 0.95, 0.2


def decays(params: PyTree) -> PyTree:
  """True for parameters with weight decay: all but the norms ('scale').

  The choice is by name, because stacked norm gains have rank two, [N, D].
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key != 'scale', params
  )


def mean_and_clip(
  sums: PyTree, count: jax.Array, clip_norm: float
) -> tuple[PyTree, jax.Array]:
  """Turns sums over targets into a mean, clipped by its global norm.

  One factor does both, so that no intermediate gradient is written.

  Args:
    sums: float32 gradients, summed over targets.
    count: number of targets.
    clip_norm: maximum norm of the result.

  Returns:
    (gradients, the mean's norm before clipping).
  """
  # A split array stays split only if its axes aren't merged.
  squares_of = _sum_of_split_squares if current_sizes() else sum_of_squares
  squares = [squares_of(x) for x in jax.tree.leaves(sums)]
  norm = jnp.sqrt(sum(squares)) / count
  factor = jnp.where(norm > clip_norm, clip_norm / norm, 1.0) / count
  return jax.tree.map(lambda x: x * factor, sums), norm


def _sum_of_split_squares(x: jax.Array) -> jax.Array:
  return jnp.sum(jnp.square(x))


def make_optimizer(optim: OptimConfig) -> optax.GradientTransformation:
  """Returns the optimizer; its updates are multiplied by -learning rate.

  Weight decay is decoupled from the gradient and also multiplied by the rate.
  """
  adam = _adam(optim)
  if optim.name == 'adamw':
    directions = adam
  else:
    directions = optax.partition({'adam': adam, 'muon': _muon(optim)}, _labels)
  return optax.chain(
    directions, optax.add_decayed_weights(optim.weight_decay, mask=decays)
  )


def _adam(optim: OptimConfig) -> optax.GradientTransformation:
  """Adam that stores its moments in a chosen dtype and computes in float32."""
  adam = optax.scale_by_adam(b1=optim.beta1, b2=optim.beta2, eps=optim.eps)

  def cast(state, dtype):
    moments: PyTree = optax.tree.cast((state.mu, state.nu), dtype)
    mu, nu = moments
    return state._replace(mu=mu, nu=nu)

  def update(updates, state, params=None):
    directions, state = adam.update(updates, cast(state, jnp.float32), params)
    return directions, cast(state, optim.moment_dtype)

  return optax.GradientTransformation(
    lambda params: cast(adam.init(params), optim.moment_dtype), update
  )


def _muon(optim: OptimConfig) -> optax.GradientTransformation:
  """Orthogonalised momentum of each matrix, at the size of Adam's updates.

  References:
    Muon is Scalable for LLM Training (arXiv 2502.16982), sections 2.1 and 2.2.
  """
  return optax.chain(
    contrib.scale_by_muon(
      beta=_MUON_MOMENTUM,
      mu_dtype=optim.moment_dtype,
      weight_dimension_numbers=matrix_axes,
    ),
    optax.stateless(
      lambda updates, _: jax.tree_util.tree_map_with_path(
        lambda path, x: _MUON_RMS * _longer_side(path, x) ** 0.5 * x,
        updates,
      )
    ),
  )


def _names(path) -> list[str]:
  return [entry.key for entry in path]


def _labels(params: PyTree) -> PyTree:
  def label(path, _):
    spared = any(name in _NOT_MATRICES for name in _names(path))
    return 'adam' if spared else 'muon'

  return jax.tree_util.tree_map_with_path(label, params)


def matrix_axes(params: PyTree) -> PyTree:
  """Which axes of each parameter are a matrix's rows and columns, for Muon.

  The choice is by name. The heads of an attention projection are columns of one
  matrix (rows, for the output's); each layer and expert has its own matrix.
  """
  return jax.tree_util.tree_map_with_path(_matrix_axes, params)


def _matrix_axes(path, x) -> contrib.MuonDimensionNumbers:
  rows, columns = _sides(path, x)
  return contrib.MuonDimensionNumbers(reduction_axis=rows, output_axis=columns)


def _sides(path, x) -> tuple[tuple[int, ...], tuple[int, ...]]:
  *scopes, name = _names(path)
  first = int(scopes[0] in _STACKS)
  first += scopes[-1] == 'experts' and name in _PER_EXPERT
  summed = 2 if scopes[-1] == 'attention' and name == 'out' else 1
  rows = tuple(range(first, first + summed))
  return rows, tuple(range(first + summed, x.ndim))


def _longer_side(path, x) -> int:
  return max(math.prod(x.shape[a] for a in side) for side in _sides(path, x))
