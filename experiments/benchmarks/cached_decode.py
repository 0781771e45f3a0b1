"""Decoding on the latent cache against running the whole model again.

Claim: at 256 tokens of context, the absorbed decode on the latent cache makes
a token at least 5 times faster than a full forward pass per token (both
compiled, compilation excluded, the full pass at one padded length of 256).
Model: `configs/demo.py`, initial weights, float32, one request.
Command: python experiments/benchmarks/cached_decode.py   (about a minute)
Reproduced: the ratio of medians is at least 5 in this run. Refuted: below.

The two are timed in turn, so that a busy machine slows both alike. For one
token a full pass computes 256 positions, and a decode step computes one, whose
attention reads 255 cached positions.
"""

from collections.abc import Sequence
import pathlib
import platform
import runpy
import statistics
import sys
import time

from absl import app
import jax
import jax.numpy as jnp
import numpy as np

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import script
from seekax.configuration.config import from_config_dict
from seekax.configuration.model import ModelConfig
from seekax.inference import engine
from seekax.machine import compiling
from seekax.model.parameters import init_weights
from seekax.model.transformer import Transformer

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTEXT = 256
WANTED = 5.0


def demo_model(variant: str) -> ModelConfig:
  """The demo's model, or its tiny variant."""
  module = runpy.run_path(str(ROOT / 'configs' / 'demo.py'))
  return from_config_dict(module['get_config'](variant)).model


def measure(config: ModelConfig, repeats: int) -> tuple[float, float]:
  """Median seconds for one token: (full pass, decode step).

  Raises:
    AssertionError: the two disagree on the next token.
  """
  model = Transformer(config)
  weights = jax.jit(lambda: init_weights(config, 0))()
  tokens_BL = np.arange(CONTEXT, dtype=np.int32)[None] % config.vocab_size
  prefill = compiling.jit(engine.prefill, static_argnums=(0, 4))
  step = compiling.jit(engine.decode, static_argnums=0, donate_argnums=3)

  def full():
    logits_BV, _ = prefill(
      model, weights, tokens_BL, np.array([CONTEXT], np.int32), CONTEXT
    )
    return jax.block_until_ready(jnp.argmax(logits_BV, axis=-1))

  _, start = prefill(
    model, weights, tokens_BL, np.array([CONTEXT - 1], np.int32), CONTEXT
  )

  def decode():
    # The cache is donated, so each repeat decodes into its own copy.
    cache = jax.tree.map(jnp.copy, start)
    jax.block_until_ready(cache)
    began = time.perf_counter()
    logits_BV, _ = step(model, weights, tokens_BL[:, -1], cache)
    token_B = jax.block_until_ready(jnp.argmax(logits_BV, axis=-1))
    return time.perf_counter() - began, token_B

  same = full(), decode()[1]
  if not np.array_equal(*same):
    raise AssertionError(f'the two ways disagree on the next token: {same}')
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    full()
    times.append((time.perf_counter() - began, decode()[0]))
  return tuple(statistics.median(column) for column in zip(*times, strict=True))


def run(stem: pathlib.Path, size: tuple[str, int]) -> None:
  """Measures a variant of the demo; appends and prints the row."""
  variant, repeats = size
  full, decode = measure(demo_model(variant), repeats)
  row = {
    'full_ms': f'{full * 1e3:.3f}',
    'decode_ms': f'{decode * 1e3:.3f}',
    'ratio': f'{full / decode:.2f}',
    'wanted': WANTED,
    'verdict': 'reproduced' if full / decode >= WANTED else 'refuted',
    'jax': jax.__version__,
    'machine': f'{platform.machine()}, {jax.devices()[0].device_kind}',
  }
  # Lines end as those of the rows that were recorded first.
  script.append_rows(script.file_of(stem, '.csv'), [row], newline='\r\n')
  for name, value in row.items():
    print(f'{name:>10}: {value}')


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(argv, run, full=('', 51), smoke=('tiny', 3))


if __name__ == '__main__':
  app.run(main)
