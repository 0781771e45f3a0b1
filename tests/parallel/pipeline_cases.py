"""A pipeline of stages that are no transformer; run as a process.

Prints for several numbers of stages and micro-batches how far gradients and
sums are from those of the same functions called in turn, and what their
programs need.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np

from reference import cases
from seekax.parallel import mesh as mesh_lib
from seekax.parallel import pipeline, pipeline_parts

ROWS, WIDTH = 8, 16
CASES = ((2, 5), (3, 1), (3, 7), (4, 1), (4, 2), (4, 4), (4, 16))


def enter(outer, batch):
  return outer['table'][batch['ids']]


def beside(outer, batch):
  return [outer['table'][batch['ids'][::-1]]]


def middle(weights, constants, x, beside, batch):
  """Beside the output a sum that isn't trained on and one that is."""
  y = jnp.tanh(x @ weights['w']) * constants + batch['shift'][:, None]
  sums = (y > 0).sum(dtype=jnp.int32)
  return y, (y, jnp.zeros_like(beside[0])), 0.1 * jnp.square(y).sum(), sums


def first(weights, constants, x, beside, batch):
  return middle(weights, constants, jnp.sin(x @ weights['w']), beside, batch)


def last(weights, constants, x, beside, batch):
  y, _, objective, sums = middle(weights, constants, x, beside, batch)
  return y, (y, jnp.cos(beside[0] @ weights['w']) * y), objective, sums + 1


def leave(outer, out, batch):
  y, more = out
  logits = (y + more) @ outer['table'].T
  wrong = jnp.square(logits).sum() + (logits * batch['shift'][:, None]).sum()
  return wrong, {'rows': jnp.int32(ROWS), 'wrong': wrong}


def model(stages: int) -> pipeline_parts.Model:
  kinds = [first, *[middle] * (stages - 2), last]
  return pipeline_parts.Model(enter, beside, kinds, leave)


def draw(stages: int, count: int):
  """Outer, staged, constants, micro-batches."""
  rng = np.random.default_rng(count)

  def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

  outer = {'table': normal(32, WIDTH)}
  staged = {'w': 0.3 * normal(stages, WIDTH, WIDTH)}
  constants = jnp.arange(1.0, stages + 1)
  batches = {
    'ids': jnp.asarray(rng.integers(0, 32, (count, ROWS))),
    'shift': normal(count, ROWS),
  }
  return outer, staged, constants, batches


def in_turn(outer, staged, constants, batches):
  """The objective and the sums, one micro-batch and stage after the other."""
  stages = constants.shape[0]
  total, passed, left = 0.0, [0] * stages, []
  for m in range(batches['shift'].shape[0]):
    batch = jax.tree.map(lambda x, m=m: x[m], batches)
    x, out = enter(outer, batch), None
    for s, stage in enumerate(model(stages).stages):
      own = jax.tree.map(lambda w, s=s: w[s], staged)
      x, out, objective, count = stage(
        own, constants[s], x, beside(outer, batch), batch
      )
      total += objective
      passed[s] += count
    objective, sums = leave(outer, out, batch)
    total += objective
    left.append(sums)
  return total, (jnp.stack(passed), jax.tree.map(lambda *x: sum(x), *left))


def run_case(stages: int, count: int):
  arguments = draw(stages, count)
  devices = jax.devices()[:stages]

  def staged_gradients(*arguments):
    result = pipeline.gradients(model(stages), *arguments)
    return (result.outer, result.staged), (result.passed, result.left)

  with (
    jax.set_mesh(mesh_lib.make_mesh(f'pipeline:{stages}', devices)),
    jax.default_matmul_precision('highest'),
  ):
    compiled = jax.jit(staged_gradients).lower(*arguments).compile()
    found = jax.device_get(jax.block_until_ready(compiled(*arguments)))
  right = jax.jit(jax.grad(in_turn, argnums=(0, 1), has_aux=True))(*arguments)
  distances = jax.tree.map(
    lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)), found, right
  )
  text = compiled.as_text() or ''
  permutes = re.findall(
    r'collective-permute(?:-start)?\(.*?source_target_pairs=(\{\{.*?\}\})', text
  )
  kept = re.findall(rf'f32\[1,(\d+),{ROWS},{WIDTH}\]', text)
  return {
    'distance': max(jax.tree.leaves(distances)),
    'same_counts': bool(np.array_equal(found[1][0], right[1][0])),
    'temporaries': cases.temporaries(compiled),
    'permutes': sorted(set(permutes)),
    'kept': max(map(int, kept)),
  }


if __name__ == '__main__':
  print(json.dumps({str(case): run_case(*case) for case in CASES}))
