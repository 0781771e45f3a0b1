"""The one table from logical axes to mesh axes, and constraints by name."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Data parallelism: batches are split, parameters are copied.
RULES: dict[str, str | None] = {
  'batch': 'data',
  'length': None,
  'layers': None,
  'embed': None,
  'vocab': None,
  'heads': None,
  'head_width': None,
  'latent': None,
  'mlp': None,
  'experts': None,
}


def spec(names: tuple[str | None, ...]) -> PartitionSpec:
  """Mesh axes of an array whose axes bear these logical names.

  Raises:
    ValueError: one mesh axis would split two axes of the array.
  """
  axes = [RULES[name] if name else None for name in names]
  used = [axis for axis in axes if axis]
  if len(used) != len(set(used)):
    raise ValueError(f'logical axes {names} use one mesh axis twice: {axes}')
  return PartitionSpec(*axes)


def sharding(mesh: Mesh, names: tuple[str | None, ...]) -> NamedSharding:
  """How an array with these logical axes lies on the mesh."""
  return NamedSharding(mesh, spec(names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Asks the compiler to lay x out by its axes' names; on one device, x."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, spec(names))
