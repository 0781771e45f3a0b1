"""A DeepSeek-V3 folder under seekax, timed on request.

The counterpart of `third_party/transformers/peer.py`: it reads JSON lines on
stdin and answers on stdout, with the same commands, and `make` and `load`
before them. The first call of a command compiles; callers warm up.
"""

import functools
import json
import os
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from seekax.configuration.compute import ComputeConfig, DEFAULT
from seekax.configuration.config import Config, to_dict
from seekax.configuration.data import DataConfig
from seekax.configuration.model import ModelConfig
from seekax.configuration.optim import OptimConfig
from seekax.configuration.presets import v3_671b
from seekax.configuration.train import TrainConfig
from seekax.data.pipeline import Batch
from seekax.inference import engine
from seekax.inference.cache import init_cache
from seekax.machine import compiling, host_memory
from seekax.model.stack import taken_apart
from seekax.model.transformer import Transformer
from seekax.model.weights import Weights
from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib
from seekax.storage.convert import convert, Options
from seekax.storage.open import open_checkpoint
from seekax.training.schedules import Rates, Schedule
from seekax.training.state import init_state, start_from, to_parts, TrainState
from seekax.training.step import compile_ahead, train_step

FOREVER = 1_000_000


def run_config(
  model: ModelConfig,
  batch_size: int,
  sequence_length: int,
  optim: OptimConfig,
  compute: ComputeConfig = DEFAULT,
) -> Config:
  """Cross-entropy alone, float32: no MTP, no balance loss, no moving bias."""
  return Config(
    model=model,
    compute=compute,
    data=DataConfig(
      sequence_length=sequence_length, batch_size=batch_size, num_shards=1
    ),
    optim=optim,
    train=TrainConfig(
      steps=FOREVER,
      precision='float32',
      mtp_weight=0.0,
      balance_weight=0.0,
      bias_update_rate=0.0,
    ),
  )


@functools.partial(compiling.jit, static_argnums=(0, 4))
def continue_greedily(model, weights, tokens_B, cache, count):
  """`count` decode steps in one program: int [count, B]."""

  def step(carry, _):
    tokens_B, cache = carry
    logits_BV, cache = engine.decode(model, weights, tokens_B, cache)
    tokens_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return (tokens_B, cache), tokens_B

  return jax.lax.scan(step, (tokens_B, cache), None, length=count)[1]


_prefill = compiling.jit(engine.prefill, static_argnums=(0, 4))


class Ours:
  """The model, its training state, and the commands as methods."""

  # From `load` on, but training takes the weights over.
  model: ModelConfig
  weights: Weights
  served: Weights | None = None
  compute: ComputeConfig = DEFAULT
  # From `start_training` on, and from the first step on.
  optim: OptimConfig
  config: Config
  state: TrainState | None = None
  rates: Rates

  def make(
    self, model: dict[str, Any], workdir: str, published: str
  ) -> dict[str, Any]:
    """Writes random weights, as a run that has just begun, and exports them."""
    length = model['context_length']
    config = run_config(ModelConfig(**model), 1, length, OptimConfig())
    folder = pathlib.Path(workdir)
    workdir_lib.prepare(folder)
    workdir_lib.write_run(folder, {'config': to_dict(config)})
    parts = to_parts(init_state(config))
    checkpoint.save(folder / workdir_lib.CHECKPOINTS, 0, parts, {})
    convert(workdir, published, Options('huggingface', 'float32'))
    return {}

  def load(self, folder: str) -> dict[str, Any]:
    """Loads the model that the other commands use."""
    opened = open_checkpoint(folder)
    self.model = opened.config.model
    self.weights = opened.weights
    return {}

  def about(self) -> dict[str, Any]:
    """Versions, the default backend of experts, the number of parameters."""
    return {
      'versions': {'jax': jax.__version__, 'jaxlib': jaxlib.__version__},
      'experts': self.compute.grouped_matmul,
      'parameters': sum(x.size for x in jax.tree.leaves(self.weights.params)),
    }

  def start_training(
    self,
    learning_rate: float,
    betas: list[float],
    eps: float,
    weight_decay: float,
    clip_norm: float,
  ) -> dict[str, Any]:
    """Makes a fresh AdamW at a constant rate; now this child only trains."""
    self.optim = OptimConfig(
      learning_rate=learning_rate,
      warmup_steps=0,
      beta1=betas[0],
      beta2=betas[1],
      eps=eps,
      weight_decay=weight_decay,
      clip_norm=clip_norm,
    )
    return {}

  def train_step(self, tokens: list[list[int]]) -> dict[str, Any]:
    """Takes one step: its seconds, and the mean loss before it.

    Args:
      tokens: rows with one token more than is read; each predicts the next.
    """
    tokens_BL = np.array(tokens, np.int32)
    batch = batch_of(tokens_BL)
    if self.state is None:
      rows, length = batch.tokens_BL.shape
      self.config = run_config(
        self.model, rows, length, self.optim, self.compute
      )
      # The step donates the state, and with it the weights.
      state = start_from(self.config, self.weights)
      # Placed as after a step, so that the second step compiles nothing.
      self.state = jax.device_put(state, jax.devices()[0])
      del self.weights
      self.rates = Schedule(self.config).rates(0)
      compile_ahead(self.config, self.state, [batch], self.rates)
    first = self.state.step == 0
    began = time.perf_counter()
    self.state, metrics = train_step(
      self.config, self.state, [batch], self.rates
    )
    loss = float(metrics.loss)
    jax.block_until_ready(self.state)
    seconds = time.perf_counter() - began
    if first:
      host_memory.return_freed_memory()  # As the training loop does.
    loads = float(metrics.max_violation['layers'].max())
    return {'seconds': seconds, 'loss': loss, 'max_violation': loads}

  def prefill(self, tokens: list[list[int]]) -> dict[str, Any]:
    """Reads prompts into a cache: seconds, the last positions' logits."""
    tokens_BL = np.array(tokens, np.int32)
    began = time.perf_counter()
    logits_BV, cache = self._prefill(tokens_BL, tokens_BL.shape[1])
    jax.block_until_ready((logits_BV, cache))
    seconds = time.perf_counter() - began
    return {'seconds': seconds, 'logits': np.asarray(logits_BV).tolist()}

  def served_weights(self):
    """The weights in the form that inference takes."""
    if self.served is None:
      self.served = taken_apart(self.compute, self.weights)
    return self.served

  def _prefill(self, tokens_BL: np.ndarray, room: int):
    batch, length = tokens_BL.shape
    lengths_B = np.full((batch,), length, np.int32)
    model = Transformer(self.model)
    return _prefill(model, self.served_weights(), tokens_BL, lengths_B, room)

  def decode(self, tokens: list[list[int]], count: int) -> dict[str, Any]:
    """Greedy tokens after prompts: seconds of `count` steps, the tokens.

    The prompt and the token that follows it are not timed.
    """
    tokens_BL = np.array(tokens, np.int32)
    logits_BV, cache = self._prefill(tokens_BL, tokens_BL.shape[1] + count)
    first_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    jax.block_until_ready((first_B, cache))
    began = time.perf_counter()
    more = continue_greedily(
      Transformer(self.model), self.served_weights(), first_B, cache, count
    )
    more = np.asarray(more)
    seconds = time.perf_counter() - began
    produced = np.concatenate([np.asarray(first_B)[None], more]).T
    return {'seconds': seconds, 'tokens': produced.tolist()}

  def cache_bytes(self) -> dict[str, Any]:
    """Bytes per token at V3's full size in bfloat16, counted on the shapes."""
    model = Transformer(v3_671b())
    cache = jax.eval_shape(lambda: init_cache(model, 1, 1, jnp.bfloat16))
    arrays = jax.tree.leaves(cache.layers)
    return {'bytes': sum(x.size * x.dtype.itemsize for x in arrays)}

  def peak(self) -> dict[str, Any]:
    """The largest resident set so far, in bytes."""
    status = pathlib.Path('/proc/self/status').read_text()
    return {'bytes': int(status.split('VmHWM:')[1].split()[0]) * 1024}


def batch_of(tokens_BL: np.ndarray) -> Batch:
  """Next-token prediction within these tokens, each row one document."""
  inputs_BL = tokens_BL[:, :-1]
  ones_BL = np.ones_like(inputs_BL)
  return Batch(
    tokens_BL=inputs_BL,
    targets_BL=tokens_BL[:, 1:],
    positions_BL=np.cumsum(ones_BL, axis=1, dtype=np.int32) - 1,
    segments_BL=ones_BL,
    target_segments_BL=ones_BL,
  )


def serve(ours: Ours) -> None:
  """Answers every line with one of its methods, until stdin ends."""
  # Everything else that prints goes to stderr.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  for line in sys.stdin:
    command = json.loads(line)
    answer = getattr(ours, command.pop('do'))(**command)
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
  host_memory.keep_freed_memory()  # As `seekax train` does.
  serve(Ours())
