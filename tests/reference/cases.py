"""Small models with uneven weights, shared by the tests.

Widths are small and all different, so that a swapped axis shows; norm gains
aren't 1, biases aren't 0, the two norm epsilons and the two YaRN magnitudes
differ, so that a swapped field shows.
"""

import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import numpy as np

from reference import transformer as oracle
from seekax.configuration.compute import ComputeConfig, DEFAULT
from seekax.configuration.model import ModelConfig
from seekax.data.pipeline import Batch
from seekax.machine import compiling
from seekax.model.experts import Load
from seekax.model.parameters import abstract_weights
from seekax.model.transformer import Transformer

_SMALL = dict(
  vocab_size=29,
  embed_dim=24,
  num_layers=3,
  num_dense_layers=1,
  context_length=64,
  num_heads=3,
  kv_latent_dim=12,
  nope_head_dim=6,
  rope_head_dim=8,
  value_head_dim=5,
  mlp_dim=20,
  expert_dim=7,
  num_experts=8,
  experts_per_token=3,
  norm_eps=1e-2,
  rope_original_length=64,
  rope_factor=4.0,
  yarn_mscale=0.5,
  yarn_mscale_all_dim=1.2,
)

V3 = ModelConfig(
  query_latent_dim=10,
  num_expert_groups=4,
  num_kept_groups=2,
  mtp_depth=2,
  **_SMALL,
)

V2 = ModelConfig(
  query_latent_dim=0,
  num_expert_groups=4,
  num_kept_groups=2,
  router='softmax',
  group_score='max',
  normalize_gates=False,
  num_shared_experts=2,
  routed_scale=3.0,
  mtp_depth=0,
  **_SMALL,
)

MOONLIGHT = ModelConfig(
  query_latent_dim=0,
  num_expert_groups=1,
  num_kept_groups=1,
  num_shared_experts=2,
  mtp_depth=0,
  rope_scaling='none',
  **_SMALL,
)

LLAMA = ModelConfig(
  vocab_size=29,
  embed_dim=24,
  num_layers=2,
  num_dense_layers=0,
  context_length=64,
  attention='gqa',
  num_heads=4,
  num_kv_heads=2,
  query_latent_dim=0,
  kv_latent_dim=0,
  nope_head_dim=0,
  rope_head_dim=8,
  value_head_dim=8,
  ffn='dense',
  mlp_dim=20,
  mtp_depth=0,
  norm_eps=1e-2,
  rope_theta=500.0,
  rope_layout='half',
  rope_scaling='llama3',
  rope_factor=8.0,
  rope_original_length=64,
)

MODELS = {'v3': V3, 'v2': V2, 'moonlight': MOONLIGHT, 'llama': LLAMA}

# The same with one MTP module, for laws that need no second one.
V3_ONE_MTP = dataclasses.replace(V3, mtp_depth=1)

# The programs' own options; compiling takes nearly all of the tests' time, and
# the two others halve it.
jit = functools.partial(
  jax.jit,
  compiler_options={
    **compiling.COMPILER_OPTIONS,
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  },
)

# Rows and positions of the tests' batches.
BATCH, LENGTH = 2, 12


def weights(
  config: ModelConfig, seed: int = 0, bias_spread: float = 0.3
) -> tuple[Any, dict[str, np.ndarray]]:
  """Random (params, router_bias): uneven gains, biases of both signs."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    noise = rng.standard_normal(leaf.shape)
    match path[-1].key:
      case 'scale':
        return (1 + 0.3 * noise).astype(np.float32)
      case 'table':
        return noise.astype(np.float32)
      case _:
        return (0.25 * noise).astype(np.float32)

  shapes = abstract_weights(config)
  params = jax.tree_util.tree_map_with_path(draw, shapes.params)
  bias = {
    key: rng.uniform(-bias_spread, bias_spread, leaf.shape).astype(np.float32)
    for key, leaf in shapes.router_bias.items()
  }
  return params, bias


def batch(
  config: ModelConfig,
  isolate_documents: bool = False,
  seed: int = 0,
  batch_size: int = BATCH,
) -> Batch:
  """Random rows with document ends at uneven places.

  Positions start above 0 unless documents are isolated.
  """
  rng = np.random.default_rng(100 + seed)
  tokens = rng.integers(0, config.vocab_size, (batch_size, LENGTH + 1))
  ends = rng.random((batch_size, LENGTH + 1)) < 0.2
  segments = 1 + np.cumsum(ends, axis=1)
  positions = np.tile(np.arange(LENGTH), (batch_size, 1))
  if isolate_documents:
    for b in range(batch_size):
      for i in range(1, LENGTH):
        same = segments[b, i] == segments[b, i - 1]
        positions[b, i] = positions[b, i - 1] + 1 if same else 0
  else:
    positions += 5 + np.arange(batch_size)[:, None]
  return Batch(
    tokens_BL=tokens[:, :-1].astype(np.int32),
    targets_BL=tokens[:, 1:].astype(np.int32),
    positions_BL=positions.astype(np.int32),
    segments_BL=segments[:, :-1].astype(np.int32),
    target_segments_BL=segments[:, 1:].astype(np.int32),
  )


@struct.dataclass
class Outputs:
  """Float32 results of the whole model; mtp_logits is [J, B, L, V]."""

  hidden_BLD: jax.Array
  logits_BLV: jax.Array
  mtp_logits: list[jax.Array]
  load: Load | None
  mtp_load: Load | None


@functools.partial(jit, static_argnums=(0, 5))
def run(
  config: ModelConfig,
  params: Any,
  router_bias: dict[str, Any],
  rows: Batch,
  segments_BL: Any,
  compute: ComputeConfig = DEFAULT,
) -> Outputs:
  """The main model and its MTP modules; compiled once per config."""
  model = Transformer(config, compute=compute)
  variables = {'params': params}
  trunk = model.apply(
    variables, rows.tokens_BL, rows.positions_BL, segments_BL, router_bias
  )
  further, mtp_load = model.apply(
    variables,
    trunk.hidden_BLD,
    rows.targets_BL,
    rows.positions_BL,
    segments_BL,
    router_bias,
    method='predict_further',
  )

  def logits(hidden):
    return model.apply(variables, hidden, method='logits')

  return Outputs(
    trunk.hidden_BLD,
    logits(trunk.hidden_BLD),
    [logits(hidden) for hidden in further],
    trunk.load,
    mtp_load,
  )


def run_oracle(
  config: ModelConfig,
  params: Any,
  router_bias: dict[str, Any],
  rows: Batch,
  segments_BL: Any,
  **mistakes: bool,
) -> list[oracle.Sequence]:
  """The same by the oracle, row by row."""
  params, router_bias = oracle.to_float64((params, router_bias))
  return [
    oracle.forward(
      params,
      router_bias,
      rows.tokens_BL[b],
      rows.targets_BL[b],
      rows.positions_BL[b],
      None if segments_BL is None else segments_BL[b],
      config,
      **mistakes,
    )
    for b in range(len(rows.tokens_BL))
  ]


def temporaries(compiled: jax.stages.Compiled) -> int:
  """Bytes of a program's temporaries, by the compiler."""
  analysis = compiled.memory_analysis()
  assert analysis is not None
  return analysis.temp_size_in_bytes


def difference(actual: Any, expected: Any) -> float:
  """Largest difference, relative to the largest expected value."""
  actual = np.asarray(actual, np.float64)
  expected = np.asarray(expected, np.float64)
  if actual.shape != expected.shape:
    raise AssertionError(f'shapes {actual.shape} and {expected.shape}')
  scale = np.abs(expected).max(initial=0) or 1.0
  worst = np.abs(actual - expected).max(initial=0) / scale
  # NaN compares false with every bound; infinity fails them all.
  return float(worst) if np.isfinite(worst) else float('inf')
