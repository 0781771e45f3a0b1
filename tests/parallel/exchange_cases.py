"""The exchange on four virtual devices; run as a process.

Prints for every case how far outputs and gradients are from those of a plain
sum over experts in float64, and the rounds it took.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from seekax.configuration.compute import ComputeConfig
from seekax.configuration.model import ModelConfig
from seekax.parallel import exchange, rules
from seekax.parallel import mesh as mesh_lib

TOKENS, WIDTH, CHOICES, EXPERTS = 64, 128, 3, 8
MODEL = ModelConfig(
  num_experts=EXPERTS,
  experts_per_token=CHOICES,
  num_expert_groups=4,
  num_kept_groups=3,
)
CASES = {
  'one_level': dict(mesh='expert:4'),
  'two_levels': dict(mesh='expert_node:2,expert:2'),
  'nodes_alone': dict(mesh='data:2,expert_node:2'),
  'gather': dict(mesh='expert:4', exchange='gather'),
  'ragged': dict(mesh='expert:4', exchange='ragged'),
  'ragged_two_levels': dict(mesh='expert_node:2,expert:2', exchange='ragged'),
  'ragged_crowded': dict(mesh='expert:4', exchange='ragged', crowded=True),
  'gather_two_levels': dict(mesh='expert_node:2,expert:2', exchange='gather'),
  'crowded': dict(mesh='expert:4', crowded=True),
  'crowded_two_levels': dict(mesh='expert_node:2,expert:2', crowded=True),
  'little_room': dict(mesh='data:2,expert:2', exchange_slack=0.1),
  'float8': dict(mesh='expert:4', dispatch_dtype='float8'),
  'float8_two_levels': dict(
    mesh='expert_node:2,expert:2', dispatch_dtype='float8'
  ),
}


def experts_of(x_TD, gates_TA, experts_TA, weights):
  """gate * tanh(x W_e), summed over choices; nobody's give 0."""
  (w_EDF,) = weights
  mine_TAE = jax.nn.one_hot(experts_TA, w_EDF.shape[0], dtype=x_TD.dtype)
  all_TED = jnp.tanh(jnp.einsum('TD,EDF->TEF', x_TD, w_EDF))
  return jnp.einsum('TAE,TA,TEF->TF', mine_TAE, gates_TA, all_TED)


def draw(crowded: bool):
  rng = np.random.default_rng(3)
  x = rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)
  gates = rng.random((TOKENS, CHOICES)).astype(np.float32)
  # Of three of four groups at most, as the router would.
  order = np.argsort(rng.random((TOKENS, EXPERTS)), axis=1)
  ids = order[:, :CHOICES].astype(np.int32)
  if crowded:
    ids[:] = [0, 1, 2]
  w = rng.standard_normal((EXPERTS, WIDTH, WIDTH)).astype(np.float32) * 0.1
  dy = rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)
  return x, gates, ids, w, dy


def expected(x, gates, ids, w, dy):
  """Outputs and gradients in float64, one choice after the other."""
  x, gates, w, dy = (np.float64(a) for a in (x, gates, w, dy))
  y, dx = np.zeros_like(x), np.zeros_like(x)
  dgates, dw = np.zeros_like(gates), np.zeros_like(w)
  for t in range(len(x)):
    for a, e in enumerate(ids[t]):
      out = np.tanh(x[t] @ w[e])
      y[t] += gates[t, a] * out
      dgates[t, a] = out @ dy[t]
      dz = gates[t, a] * dy[t] * (1 - out**2)
      dx[t] += w[e] @ dz
      dw[e] += np.outer(x[t], dz)
  return y, dx, dgates, dw


def ragged_all_to_all(
  operand, output, starts, sizes, places, arriving, *, axis_name
):
  """What JAX's does, which XLA can't do on a CPU, from all ranks' rows."""
  gather = functools.partial(jax.lax.all_gather, axis_name=axis_name)
  rank = jax.lax.axis_index(axis_name)
  operands, starts, sizes, places = map(
    gather, (operand, starts, sizes, places)
  )
  row = jnp.arange(output.shape[0])
  for sender in range(operands.shape[0]):
    within = row - places[sender, rank]
    there = (within >= 0) & (within < sizes[sender, rank])
    agreed = sizes[sender, rank] == arriving[sender]
    rows = jnp.take(
      operands[sender], starts[sender, rank] + within, axis=0, mode='clip'
    )
    rows = jnp.where(agreed, rows, jnp.nan)
    there = there.reshape(-1, *[1] * (output.ndim - 1))
    output = jnp.where(there, rows, output)
  return output


def over_experts(compute: ComputeConfig):
  """Of whole arrays, on the mesh that is set."""
  tokens = rules.axes('batch', None)
  return rules.per_shard(
    functools.partial(exchange.over_experts, experts_of, MODEL, compute),
    inputs=(tokens, tokens, tokens, (rules.axes('experts', None, None),)),
    outputs=(tokens, rules.axes()),
  )


def run_case(mesh='', crowded=False, **changes):
  x, gates, ids, w, dy = draw(crowded)
  with jax.set_mesh(mesh_lib.make_mesh(mesh)):
    over = over_experts(ComputeConfig(**changes))

    @jax.jit
    def both(x, gates, w):
      (y, rounds), vjp = jax.vjp(
        lambda x, gates, w: over(x, gates, ids, (w,)), x, gates, w
      )
      return y, rounds, vjp((dy, np.zeros((), jax.dtypes.float0)))

    lowered = both.lower(x, gates, w)
    y, rounds, gradients = jax.block_until_ready(lowered.compile()(x, gates, w))
  found: dict[str, float | bool] = dict(rounds=int(rounds))
  found['bytes'] = 'ui8' in lowered.as_text()
  want = expected(x, gates, ids, w, dy)
  for name, ours, right in zip(
    ('y', 'x', 'gates', 'weights'), (y, *gradients), want, strict=True
  ):
    distance = np.linalg.norm(ours - right) / np.linalg.norm(right)
    found[name] = float(distance)
  return found


def lowered_for_cuda(mesh: str) -> str:
  """The program of JAX's own ragged collective, as a GPU would get it."""
  x, gates, ids, w, _ = draw(False)
  with jax.set_mesh(mesh_lib.make_mesh(mesh)):
    over = over_experts(ComputeConfig(exchange='ragged'))
    traced = jax.jit(over).trace(x, gates, ids, (w,))
    return traced.lower(lowering_platforms=('cuda',)).as_text()


if __name__ == '__main__':
  cuda = lowered_for_cuda('expert:4').count('ragged_all_to_all')
  setattr(jax.lax, ragged_all_to_all.__name__, ragged_all_to_all)
  found = {name: run_case(**case) for name, case in CASES.items()}
  print(json.dumps({'cases': found, 'ragged_for_cuda': cuda}))
