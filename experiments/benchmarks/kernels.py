"""The costly operations beside their plain forms: time and temporaries.

Claims, on a CPU in float32, each forward and backward, compiled, and at least
what `scoreboard.CLAIMS` says:

- grouped SwiGLU (2,048 tokens of width 256, 32 experts of 128, top-4, random
  loads near balance): 20 times as fast as `jax.lax.ragged_dot`, 4 times as fast
  as every expert dense. Dense is the faster of two forms: the `dense` backend
  (every row of a slot meets every expert), and every token meeting every expert
  once.
- attention (one sequence, 4 heads, query/key width 192, value width 128): a
  fifth of the temporaries of the form that holds all logits, at 8,192 tokens,
  and no slower at 1,024.
- cross-entropy (4,096 tokens of width 256, vocabulary 129,280): a tenth of the
  temporaries of materialised logits, in at most 1.2 times the time.

All are compiled with the options of the training step. Temporaries are the
compiler's own count, without inputs and outputs. Times are medians of repeats
taken in turn after a warm-up; both forms must agree first.
Command: python experiments/benchmarks/kernels.py   (about 3 minutes)
"""

from collections.abc import Callable, Sequence
import functools
import math
import pathlib
import statistics
import sys
import time
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import scoreboard

import script
from seekax.configuration.compute import DEFAULT
from seekax.machine import compiling
from seekax.ops.attention import causal_attention
from seekax.ops.cross_entropy import cross_entropy_sum
from seekax.ops.grouped_matmul import grouped_swiglu

_REPEATS = flags.DEFINE_integer('repeats', 9, 'repeats of a median', 5)
BACKEND = DEFAULT.grouped_matmul
# A share of the largest entry: float32 sums in another order.
TOLERANCE = 1e-4

# (name of a row, our number, the peer's, how it was measured)
Found = tuple[str, float, float, str]
Function = Callable[..., Any]


def in_turn(
  functions: Sequence[Function], args: Sequence[Any], repeats: int
) -> list[float]:
  """Median milliseconds of each function; they run in turn after a warm-up.

  Raises:
    AssertionError: the functions give different results.
  """
  results = [jax.block_until_ready(call(*args)) for call in functions]
  for result in results[1:]:
    _check_same(result, results[0])
  del results
  times = [[] for _ in functions]
  for repeat in range(repeats):
    order = list(zip(functions, times, strict=True))
    for call, found in order[:: -1 if repeat % 2 else 1]:
      began = time.perf_counter()
      jax.block_until_ready(call(*args))
      found.append((time.perf_counter() - began) * 1e3)
  return [statistics.median(found) for found in times]


def _check_same(actual: Any, expected: Any) -> None:
  def check(a, b):
    a, b = np.asarray(a), np.asarray(b)
    worst = np.abs(a - b).max() / np.abs(b).max()
    if not worst < TOLERANCE:
      raise AssertionError(f'{worst} of the largest entry apart')

  jax.tree.map(check, actual, expected)


def temporaries(function: jax.stages.Wrapped, args: Sequence[Any]) -> float:
  """MB of temporaries for arguments of these shapes, by the compiler."""
  analysis = function.lower(*args).compile().memory_analysis()
  assert analysis is not None
  return analysis.temp_size_in_bytes / 1e6


def normal(seed: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


# --- grouped matmul -----------------------------------------------------------


def every_expert(x_TD, gates_TA, experts_TA, gate_EDF, up_EDF, down_EFD):
  """All experts on all tokens; an expert that wasn't chosen weighs nothing."""
  own_TAE = jax.nn.one_hot(experts_TA, gate_EDF.shape[0], dtype=x_TD.dtype)
  weight_TE = jnp.einsum('TA,TAE->TE', gates_TA, own_TAE)
  gate_ETF = jnp.einsum('TD,EDF->ETF', x_TD, gate_EDF)
  up_ETF = jnp.einsum('TD,EDF->ETF', x_TD, up_EDF)
  hidden_ETF = jax.nn.silu(gate_ETF) * up_ETF * weight_TE.T[..., None]
  return jnp.einsum('ETF,EFD->TD', hidden_ETF, down_EFD)


def expert_inputs(tokens: int, width: int, hidden: int, experts: int):
  """Tokens, gates, top-4 choices drawn evenly, three matrices per expert."""
  _, experts_TA = jax.lax.top_k(normal(0, tokens, experts), 4)
  gates_TA = jax.nn.softmax(normal(1, tokens, 4), axis=-1)
  return (
    normal(2, tokens, width),
    gates_TA,
    experts_TA,
    normal(3, experts, width, hidden) / math.sqrt(width),
    normal(4, experts, width, hidden) / math.sqrt(width),
    normal(5, experts, hidden, width) / math.sqrt(hidden),
  )


def with_gradients(
  function: Function, by: tuple[int, ...]
) -> jax.stages.Wrapped:
  """A function's output and the gradients of a weighted sum of it, compiled."""

  def weighed(*args):
    *args, cotangent = args
    out = function(*args)
    return jnp.vdot(out, cotangent), out

  return compiling.jit(jax.value_and_grad(weighed, by, has_aux=True))


def grouped_matmul(smoke: bool, repeats: int) -> list[Found]:
  args = expert_inputs(*((64, 32, 16, 8) if smoke else (2048, 256, 128, 32)))
  load_E = np.bincount(np.asarray(args[2]).reshape(-1))
  forms = [
    *(
      functools.partial(grouped_swiglu, backend=backend)
      for backend in (BACKEND, 'ragged', 'dense')
    ),
    every_expert,
  ]
  ours, ragged, slots, tokens = in_turn(
    [with_gradients(form, (0, 1, 3, 4, 5)) for form in forms],
    (*args, normal(6, *args[0].shape)),
    repeats,
  )
  loads = f'{BACKEND}; loads {load_E.min()} to {load_E.max()}'
  dense = f'dense backend {slots:.0f} ms, every token {tokens:.0f} ms'
  return [
    ('gmm_vs_ragged', ours, ragged, loads),
    ('gmm_vs_dense', ours, min(slots, tokens), f'{loads}; {dense}'),
  ]


# --- attention ----------------------------------------------------------------


def all_logits_attention(q_BLHK, k_BLHK, v_BLHU, scale: float):
  """The plain form: one array of all logits, one mask."""
  logits_BHLM = jnp.einsum('BLHK,BMHK->BHLM', q_BLHK, k_BLHK) * scale
  visible_LM = jnp.tril(jnp.ones(logits_BHLM.shape[-2:], bool))
  logits_BHLM = jnp.where(visible_LM, logits_BHLM, -jnp.inf)
  weights_BHLM = jax.nn.softmax(logits_BHLM, axis=-1)
  return jnp.einsum('BHLM,BMHU->BLHU', weights_BHLM, v_BLHU)


def attention(smoke: bool, repeats: int) -> list[Found]:
  heads, width, value_width = 4, 192, 128
  scale = 1 / math.sqrt(width)
  forms = [
    with_gradients(functools.partial(form, scale=scale), (0, 1, 2))
    for form in (causal_attention, all_logits_attention)
  ]

  def shapes(length):
    widths = (width, width, value_width, value_width)
    return [(1, length, heads, each) for each in widths]

  long, short = (256, 64) if smoke else (8192, 1024)
  abstract = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes(long)]
  memory = [temporaries(form, abstract) for form in forms]
  args = [normal(seed, *shape) for seed, shape in enumerate(shapes(short))]
  times = in_turn(forms, args, repeats)
  return [
    ('attention_memory', memory[0], memory[1], f'compiled for L = {long}'),
    ('attention_time', times[0], times[1], f'L = {short}'),
  ]


# --- cross-entropy ------------------------------------------------------------


def all_logits_loss(hidden_TD, head_DV, targets_T, weights_T):
  """The plain form: one array of all logits."""
  log_p_TV = jax.nn.log_softmax(jnp.einsum('TD,DV->TV', hidden_TD, head_DV))
  chosen_T = jnp.take_along_axis(log_p_TV, targets_T[:, None], axis=1)[:, 0]
  return -jnp.sum(chosen_T * weights_T)


def cross_entropy(smoke: bool, repeats: int) -> list[Found]:
  tokens, width, vocabulary = (64, 16, 512) if smoke else (4096, 256, 129280)
  args = (
    normal(0, tokens, width),
    normal(1, width, vocabulary) / math.sqrt(width),
    jax.random.randint(jax.random.key(2), (tokens,), 0, vocabulary),
    jnp.ones((tokens,), jnp.float32),
  )
  forms = [
    compiling.jit(jax.value_and_grad(form, (0, 1)))
    for form in (cross_entropy_sum, all_logits_loss)
  ]
  memory = [temporaries(form, args) for form in forms]
  if smoke:  # All logits of so few tokens are one chunk, without temporaries.
    memory = [max(x, 1e-6) for x in memory]
  times = in_turn(forms, args, repeats)
  shape = f'{tokens} tokens, vocabulary {vocabulary}'
  return [
    ('loss_memory', memory[0], memory[1], shape),
    ('loss_time', times[0], times[1], shape),
  ]


def run(stem: pathlib.Path, smoke: bool) -> None:
  """Measures all parts and publishes their rows."""
  repeats = 1 if smoke else _REPEATS.value
  circumstances = scoreboard.Circumstances()
  found = [
    one
    for part in (grouped_matmul, attention, cross_entropy)
    for one in part(smoke, repeats)
  ]
  scoreboard.add_and_publish(
    stem,
    [scoreboard.compare(name, *pair) for name, *pair, _ in found],
    circumstances.cells({'jax': jax.__version__, 'jaxlib': jaxlib.__version__}),
    {name: f'{note}; {repeats} repeats' for name, _, _, note in found},
  )


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(argv, run, full=False, smoke=True)


if __name__ == '__main__':
  app.run(main)
