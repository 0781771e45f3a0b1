"""The sections of `h200.py` about the training step, ours and the peer's."""

from collections.abc import Mapping
import dataclasses
import functools
import json
import math
import pathlib
import statistics
import tempfile

import asked
import gpu_table
from gpu_table import Case, milliseconds, Section
import jax
import jax.numpy as jnp
import numpy as np
import ours

from seekax.configuration.compute import (
  ATTENTION_BACKENDS,
  ComputeConfig,
  GROUPED_MATMULS,
  REMAT_POLICIES,
)
from seekax.configuration.config import Config
from seekax.configuration.model import ModelConfig
from seekax.configuration.optim import OptimConfig
from seekax.planning.flops import (
  model_flops_utilization,
  training_flops_per_token,
)
from seekax.planning.hardware import peak_flops
from seekax.planning.parameters import count_parameters
from seekax.storage.published_config import published_config
from seekax.training.schedules import Schedule
from seekax.training.state import init_state, TrainState
from seekax.training.step import train_step

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEER = ROOT / 'third_party' / 'transformers' / 'peer_gpu.py'
# Rows of the table that shows where a step's time goes.
KERNELS = 15


@dataclasses.dataclass(frozen=True)
class Way:
  """How a step is made.

  Attributes:
    sequences: sequences in a batch.
    scan: whether the layers are one scan, and not written out.
    moments: dtype of AdamW's moments.
    matmul: compute.grouped_matmul.
    attention: compute.attention_backend.
    remat: compute.remat.
  """

  sequences: int = 8
  scan: bool = False
  moments: str = 'bfloat16'
  matmul: str = 'auto'
  attention: str = 'auto'
  remat: str = 'none'

  def labels(self) -> tuple[str, ...]:
    return (
      str(self.sequences),
      'a scan' if self.scan else 'written out',
      self.moments,
      self.matmul,
      self.attention,
      self.remat,
    )


# The step that is profiled.
PROFILED = Way(4, moments='float32')


@dataclasses.dataclass(frozen=True)
class Size:
  """What a step reads, and how many steps a measurement takes."""

  model: ModelConfig
  batch: int = 8
  length: int = 4096
  steps: int = 5


def step_model() -> ModelConfig:
  """V3's layers at 3.1 billion parameters; a token uses 0.5 billion of them."""
  return ModelConfig(
    vocab_size=32768,
    embed_dim=2048,
    num_layers=10,
    num_dense_layers=1,
    context_length=4096,
    num_heads=16,
    query_latent_dim=768,
    kv_latent_dim=512,
    mlp_dim=8192,
    expert_dim=768,
    num_experts=64,
    experts_per_token=6,
    num_expert_groups=8,
    num_kept_groups=4,
    mtp_depth=0,
    rope_scaling='none',
  )


def smallest() -> Size:
  """The smoke form's size, which mostly waits for the compiler."""
  model = dataclasses.replace(
    step_model(),
    vocab_size=32,
    embed_dim=16,
    num_layers=1,
    num_dense_layers=0,
    context_length=16,
    num_heads=2,
    query_latent_dim=0,
    kv_latent_dim=16,
    nope_head_dim=8,
    rope_head_dim=8,
    value_head_dim=8,
    expert_dim=8,
    num_experts=4,
    experts_per_token=2,
    num_expert_groups=1,
    num_kept_groups=1,
  )
  return Size(model, batch=1, length=16, steps=1)


class Step:
  """The sections at one size; `oracle` is a Python with torch for the GPU."""

  def __init__(self, size: Size, oracle: str, smoke: bool, repeats: int):
    self.size, self.oracle = size, oracle
    self.smoke, self.repeats = smoke, repeats
    self.totals: Mapping[str, float] = {}

  def sections(self) -> list[Section]:
    return [self.step(), self.time(), self.peer()]

  def step(self) -> Section:
    ways, profiled = _ways(), PROFILED
    if self.smoke:  # The references compile soonest.
      profiled = Way(1, matmul='dense', attention='plain')
      ways = [profiled]
    cases = [
      Case(way.labels(), functools.partial(self._step, way, way == profiled))
      for way in ways
    ]
    model, size = self.size.model, self.size
    return Section(
      'step',
      'Training step',
      f'Width {model.embed_dim}, {model.num_layers} layers, '
      f'{model.num_experts} experts top-{model.experts_per_token}, '
      f'sequences of {size.length} tokens, '
      f'{training_flops_per_token(model, size.length) / 1e9:.2f} GFLOP per '
      'token. Backends and policies as the config names them, auto as the '
      'device allows; masters are float32. MFU is the share of the dense '
      'bfloat16 peak; memory is the most that this row or one above it in '
      'the same run took, so the first rows are those that keep least.',
      (
        'sequences',
        'layers',
        'moments',
        'grouped matmul',
        'attention',
        'rematerialised',
      ),
      ('tokens/s', 'ms', 'MFU', 'peak memory so far, GB'),
      cases,
      clear=not self.smoke,
    )

  def config(self, way: Way) -> Config:
    """The run whose steps are measured."""
    size = self.size
    compute = ComputeConfig(
      grouped_matmul=way.matmul,
      attention_backend=way.attention,
      remat=way.remat,
      unroll_layers=0 if way.scan else size.model.num_layers,
    )
    optim = OptimConfig(moment_dtype=way.moments)
    config = ours.run_config(
      size.model, way.sequences, size.length, optim, compute
    )
    train = dataclasses.replace(
      config.train,
      precision='bfloat16',
      balance_weight=1e-4,
      bias_update_rate=1e-3,
    )
    return dataclasses.replace(config, train=train)

  def _step(self, way: Way, profiled: bool):
    size = self.size
    config = self.config(way)
    stepper = _Stepper(config, self.repeats)
    spent = stepper.seconds(size.steps)
    if profiled:
      self.totals = stepper.profile()
    tokens = way.sequences * size.length
    peak = peak_flops(jax.devices()[0].device_kind)
    use = model_flops_utilization(
      training_flops_per_token(size.model, size.length), tokens / spent, peak
    )
    memory = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)
    return {
      'tokens/s': f'{tokens / spent:.0f}',
      'ms': milliseconds(spent),
      'MFU': f'{use:.1%}' if use else 'peak unknown',
      'peak memory so far, GB': f'{memory / 1e9:.1f}',
    }

  def time(self) -> Section:
    cases = [
      Case((str(rank + 1),), functools.partial(self._time, rank))
      for rank in range(KERNELS)
    ]
    return Section(
      'time',
      "Where a step's time goes",
      'The kernels that take most of the time of the row '
      f'{", ".join(PROFILED.labels())} above, by the profiler.',
      ('rank',),
      ('kernel', 'ms per step', 'share'),
      cases,
    )

  def _time(self, rank: int):
    if rank >= len(self.totals):
      return {}
    name, spent = list(self.totals.items())[rank]
    share = spent / sum(self.totals.values())
    steps = _Stepper.PROFILED
    return {
      'kernel': name[:60].replace('|', '/'),
      'ms per step': f'{spent / steps:.2f}',
      'share': f'{share:.1%}',
    }

  # --- the peer ---------------------------------------------------------------

  def peer(self) -> Section:
    ways = [
      (experts, attention)
      for experts in ('grouped_mm', 'eager')
      for attention in ('sdpa', 'eager')
    ]
    return Section(
      'peer',
      'The same model in transformers',
      f'Weights, gradients and moments in bfloat16; random weights; '
      f'{self.size.batch} sequences.',
      ('experts', 'attention'),
      ('tokens/s', 'ms', 'peak memory, GB', 'versions'),
      [Case(way, functools.partial(self._peer, *way)) for way in ways],
    )

  def _peer(self, experts: str, attention: str):
    if not self.oracle:
      return {}
    size, model = self.size, self.size.model
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
      path = pathlib.Path(name) / 'config.json'
      published = published_config(model, 'bfloat16', False, False)
      path.write_text(json.dumps(published))
      with asked.Child([self.oracle, str(PEER), name]) as child:
        about = child.ask('about')
        expected = count_parameters(model).total
        # The router's bias is no parameter there.
        expected -= model.num_expert_layers * model.num_experts
        if about['parameters'] != expected:
          raise AssertionError(
            f'{about["parameters"]} parameters beside {expected}'
          )
        child.ask('use', experts=experts)
        child.ask('use_attention', attention=attention)
        child.ask(
          'start_training',
          learning_rate=1e-6,
          betas=[0.9, 0.95],
          eps=1e-8,
          weight_decay=0.1,
          clip_norm=1.0,
        )
        times = []
        for _ in range(size.steps + 3):
          shape = size.batch, size.length + 1
          tokens = rng.integers(0, model.vocab_size, shape).tolist()
          times.append(child.ask('train_step', tokens=tokens)['seconds'])
        peak = child.ask('peak')['bytes']
    spent = statistics.median(times[3:])
    versions = ' '.join(f'{k} {v}' for k, v in about['versions'].items())
    return {
      'tokens/s': f'{size.batch * size.length / spent:.0f}',
      'ms': milliseconds(spent),
      'peak memory, GB': f'{peak / 1e9:.1f}',
      'versions': versions,
    }


def _ways() -> list[Way]:
  """Every policy, some other settings, every backend but the references."""
  ways = [Way(remat=x) for x in reversed(REMAT_POLICIES)]
  ways += [
    Way(4, scan=True, moments='float32'),
    PROFILED,
    Way(4, remat='paper'),
  ]
  ways += [
    Way(matmul=x)
    for x in GROUPED_MATMULS
    if x not in ('auto', 'ragged', 'dense')
  ]
  return ways + [
    Way(attention=x) for x in ATTENTION_BACKENDS if x not in ('auto', 'plain')
  ]


class _Stepper:
  """Trains on random tokens; a step doesn't wait for the one before it."""

  PROFILED = 3

  def __init__(self, config: Config, repeats: int):
    self._config, self._repeats = config, repeats
    self._state: TrainState = init_state(config)
    self._rates = Schedule(config).rates(0)
    rng = np.random.default_rng(0)
    shape = config.data.batch_size, config.data.sequence_length + 1
    tokens = rng.integers(0, config.model.vocab_size, shape)
    self._batch = jax.device_put(ours.batch_of(tokens.astype(np.int32)))
    for _ in range(2):
      self._steps(1)

  def _steps(self, count: int) -> None:
    loss = jnp.zeros(())
    for _ in range(count):
      self._state, metrics = train_step(
        self._config, self._state, [self._batch], self._rates
      )
      loss = metrics.loss
    loss = float(loss)
    jax.block_until_ready(self._state)
    if not math.isfinite(loss):
      raise AssertionError(f'the loss is {loss}')

  def seconds(self, steps: int) -> float:
    """The median time of a step, measured over groups of `steps` steps."""
    return (
      gpu_table.median_of(lambda: self._steps(steps), self._repeats) / steps
    )

  def profile(self) -> dict[str, float]:
    """Milliseconds of every kernel in PROFILED steps."""
    with tempfile.TemporaryDirectory() as name:
      with jax.profiler.trace(name, create_perfetto_trace=True):
        self._steps(self.PROFILED)
      return gpu_table.kernel_totals(pathlib.Path(name))
