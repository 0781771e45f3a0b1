"""Kernels and the training step on one Hopper GPU, bfloat16.

Claims: the training step of a V3-shaped model that fits one GPU reaches 40 % of
the device's peak (model FLOP; the field's JAX record on Hopper is 28 %, with
simpler attention on eight H100), and more tokens per second than transformers
there. Of the kernels nothing is claimed: the tables tell which implementation
`seekax.ops.backends` should prefer, beside a dense product of as many
operations.

Every implementation is checked before it is timed (a product against the same
in float32, attention and decoding against their plain forms in float32), and a
row survives the failure of any other. Times are medians of 9 after a warm-up; a
time is that of calls that fill about 20 ms together.

- grouped: rows sorted by expert, one matrix each; forward, the rows' gradient
  and the weights' gradient, each on its own.
- tiles: our grouped product at other tiles than the chosen ones.
- swiglu: the three products of an expert layer with SwiGLU and the routing
  weight, on sorted rows.
- attention: causal, whole sequences.
- decode: one token per request against the latent cache, absorbed.
- loss: cross-entropy with its gradients, from hidden states.
- step: the whole training step (gradients, clipping, AdamW with float32
  masters, router bias), random tokens, no token dropped.
- time: where a step's time goes, by the profiler, of the first row of step.
- peer: the same model in transformers, which trains in pure bfloat16.

Command: python experiments/benchmarks/h200.py --oracle=PYTHON  (about half an
hour on a GPU with 80 GB or more; PYTHON has torch and transformers for the
GPU, without it the peer's rows are not measured). --plan writes the tables
without measuring.
"""

from collections.abc import Mapping, Sequence
import datetime
import importlib.metadata
import os
import pathlib
import sys
import tempfile

from absl import app, flags
import gpu_attention
import gpu_grouped
import gpu_step
import gpu_table
from gpu_table import Section
import jax

from seekax.ops import cudnn_attention

TABLE = pathlib.Path(__file__).with_suffix('.md')
NAMES = (
  'grouped',
  'tiles',
  'swiglu',
  'attention',
  'decode',
  'loss',
  'step',
  'time',
  'peer',
)

_SMOKE = flags.DEFINE_bool('smoke', False, 'tiny shapes, result thrown away')
_PLAN = flags.DEFINE_bool('plan', False, 'write the tables, measure nothing')
_SECTIONS = flags.DEFINE_list('sections', list(NAMES), 'what to measure')
_ORACLE = flags.DEFINE_string('oracle', '', 'a Python with torch for the GPU')
_REPEATS = flags.DEFINE_integer('repeats', 9, 'medians are over these', 5)


def full() -> list[Section]:
  size, repeats = gpu_step.Size(gpu_step.step_model()), _REPEATS.value
  return [
    *gpu_grouped.Grouped(gpu_grouped.Size(), False, repeats).sections(),
    *gpu_attention.Attention(gpu_attention.Size(), False, repeats).sections(),
    *gpu_step.Step(size, _ORACLE.value, False, repeats).sections(),
  ]


def smoke() -> list[Section]:
  return [
    *gpu_grouped.Grouped(gpu_grouped.smallest(), True, 1).sections(),
    *gpu_attention.Attention(gpu_attention.smallest(), True, 1).sections(),
    *gpu_step.Step(gpu_step.smallest(), '', True, 1).sections(),
  ]


def _circumstances(measured: bool) -> str:
  """The head of the file: what it is, when, where, how."""
  lines = ['# One Hopper GPU', '']
  lines += [
    'Written by `experiments/benchmarks/h200.py`, whose docstring says what is '
    'measured and how.',
    '',
  ]
  date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  if not measured:
    lines += [
      '- date: nothing was measured yet; `--plan` laid the tables out',
      '- GPU: none',
    ]
    return '\n'.join(lines) + '\n'
  names = ('jax', 'jaxlib', 'flax', 'tokamax', 'jax-triton')
  versions = [f'Python {sys.version.split()[0]}']
  for name in names:
    try:
      versions.append(f'{name} {importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      versions.append(f'{name} absent')
  versions.append(f'cuDNN {cudnn_attention.version()}')
  device = jax.devices()[0]
  versions.append(' '.join(device.client.platform_version.split()))
  lines += [
    f'- date: {date}',
    f'- GPU: {device.device_kind}, {jax.device_count()} in sight, one used',
    f'- versions: {", ".join(versions)}',
    f'- command: `python experiments/benchmarks/h200.py '
    f'--sections={",".join(_SECTIONS.value)} --repeats={_REPEATS.value}'
    f'{" --oracle=PYTHON" if _ORACLE.value else ""}`',
  ]
  return '\n'.join(lines) + '\n'


def _write(
  path: pathlib.Path,
  head: str,
  sections: Sequence[Section],
  found: Mapping[str, gpu_table.Found],
) -> None:
  """After every section, so that a killed run leaves what it has."""
  parts = [head]
  parts += [gpu_table.markdown(x, found.get(x.name, {})) for x in sections]
  path.write_text('\n'.join(parts))


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def run(
  path: pathlib.Path, sections: Sequence[Section], chosen: Sequence[str]
) -> list[str]:
  """Measures the chosen sections, writes all; returns the rows that failed."""
  head, found = _circumstances(bool(chosen)), {}
  _write(path, head, sections, found)
  for section in sections:
    if section.name in chosen:
      found[section.name] = gpu_table.measure(section, _say)
      _write(path, head, sections, found)
  return [
    f'{name}, {", ".join(labels)}'
    for name, rows in found.items()
    for labels, cells in rows.items()
    if any(cell.startswith('failed') for cell in cells.values())
  ]


def main(argv):
  del argv
  unknown = set(_SECTIONS.value) - set(NAMES)
  if unknown:
    raise app.UsageError(
      f'--sections={",".join(sorted(unknown))}: known are {", ".join(NAMES)}'
    )
  if _PLAN.value:
    run(TABLE, full(), ())
  elif _SMOKE.value:
    with tempfile.TemporaryDirectory() as name:
      path = pathlib.Path(name) / TABLE.name
      failed = run(path, smoke(), _SECTIONS.value)
    if failed:
      raise AssertionError(f'failed: {"; ".join(failed)}')
  elif jax.default_backend() != 'gpu':
    raise app.UsageError(
      'this needs an NVIDIA GPU and JAX for it, and found '
      f'{jax.default_backend()}; pip install "jax[cuda13]", or try --smoke'
    )
  else:
    for row in run(TABLE, full(), _SECTIONS.value):
      _say(f'failed: {row}')


if __name__ == '__main__':
  if '--smoke' in sys.argv:
    # Compiling takes nearly all of the time.
    os.environ['XLA_FLAGS'] = (
      os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=0'
    )
  app.run(main)
