"""A gradient of ranks that work apart, on four devices; run as a process.

Prints for several meshes how far it is from that of one device, and what the
partitioned program sends.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np

from seekax.parallel import mesh as mesh_lib
from seekax.parallel import ranks, rules

ROWS, WIDTH, HIDDEN, PARTS = 8, 12, 6, 3
MESHES = ('data:1', 'data:4', 'data:2,expert:2', 'data:2,fsdp:2', 'tensor:4')
# 12 divides by four ranks; 6 doesn't, nor do the 5 of the offset.
NAMES = {
  'into': rules.axes('embed', 'mlp'),
  'offset': rules.axes('embed'),
  'table': rules.axes('experts', 'embed'),
}


def draw():
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

  weights = {
    'into': normal(WIDTH, 8),
    'offset': normal(5),
    'table': normal(4, WIDTH),
  }
  return weights, normal(PARTS, ROWS, WIDTH)


def objective(weights, x_BD):
  """Of a rank's own rows; a rank has its part of the table, for its group's."""
  y = jnp.tanh(x_BD @ weights['into'])
  value = jnp.square(y).sum() + (y[:, :5] * weights['offset']).sum()
  rows = jnp.float32(x_BD.shape[0])
  group = rows
  if 'expert' in mesh_lib.current_sizes():
    group = jax.lax.psum(rows, 'expert')
  return value + group * jnp.square(weights['table']).sum(), rows


def step(weights, x_MBD):
  """Summed over micro-batches, then over ranks."""

  def of_rank(weights, x_BD):
    return jax.grad(objective, has_aux=True)(weights, x_BD)

  run = ranks.apart(of_rank, (NAMES, rules.axes('batch', None)), NAMES)
  total = ranks.zeros(weights, NAMES), jnp.zeros(())
  for x_BD in x_MBD:
    total = jax.tree.map(jnp.add, total, run(weights, x_BD))
  partial, count = total
  return ranks.summed(partial, NAMES), count


def run_case(mesh: str):
  devices = mesh_lib.make_mesh(mesh)
  with jax.set_mesh(devices), jax.default_matmul_precision('highest'):
    weights, x = draw()
    compiled = jax.jit(step).lower(weights, x).compile()
    gradients, count = jax.block_until_ready(compiled(weights, x))
    kinds = re.findall(
      r' (all-reduce|reduce-scatter|all-gather)(?:-start)?\(',
      compiled.as_text() or '',
    )
    return {
      'gradients': jax.device_get(gradients),
      'count': float(count),
      'shards': {
        key: value.addressable_shards[0].data.size
        for key, value in gradients.items()
      },
      'kinds': {kind: kinds.count(kind) for kind in set(kinds)},
    }


def main() -> None:
  found = {mesh: run_case(mesh) for mesh in MESHES}
  right = found['data:1']['gradients']
  for case in found.values():
    case['distance'] = {
      key: float(np.linalg.norm(value - right[key]))
      / float(np.linalg.norm(right[key]))
      for key, value in case.pop('gradients').items()
    }
  print(json.dumps(found))


if __name__ == '__main__':
  main()
