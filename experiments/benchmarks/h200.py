"""Kernels and the training step on one Hopper GPU, bfloat16.

Claims: the training step of a V3-shaped model that fits one GPU reaches 40 % of
the device's peak (model FLOP; the field's JAX record on Hopper is 28 %, with
simpler attention on eight H100), and more tokens per second than transformers
there. No claim is made about kernels: the tables tell which implementation
`seekax.ops.backends` should prefer, beside a dense product of as many
operations.

Every implementation is checked before it is timed (a product against the same
product in float32, attention and decoding against their plain forms in
float32), and a row survives the failure of any other. A time is the median of 9
measurements after a warm-up; a measurement is a group of calls that fill about
20 ms together.

- grouped: rows sorted by expert, one matrix per expert; forward, the rows'
  gradient and the weights' gradient, each timed alone.
- tiles: our grouped product at other tiles than the chosen ones.
- swiglu: the three products of an expert layer with SwiGLU and the routing
  weight, on sorted rows.
- attention: causal, whole sequences.
- decode: one token per request against the latent cache, absorbed.
- loss: cross-entropy with its gradients, from hidden states.
- fp8: the three products of a linear map in block FP8, beside bfloat16.
- step: the whole training step (gradients, clipping, AdamW with float32
  masters, router bias), random tokens, no token dropped.
- time: where a step's time goes, by the profiler, when auto chooses the
  backends and nothing is rematerialised; the same run must measure step.
- peer: the same model in transformers, which trains in pure bfloat16.

Command: python experiments/benchmarks/h200.py --oracle=PYTHON  (about half an
hour on a GPU with 80 GB or more; PYTHON has torch and transformers for the
GPU, and without it the peer's rows are not measured). A run may measure some
sections alone, --sections=grouped,tiles and so on, and some rows alone, whose
labels hold a pattern, --rows=V3: results/h200.json keeps the newest of each,
and h200.md shows them all. --plan writes h200.md without measuring.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import shlex
import sys
from typing import Any

from absl import app, flags
import jax

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import gpu_attention
import gpu_fp8
import gpu_grouped
import gpu_step
import gpu_table
from gpu_table import Section

import script
from seekax.ops.versions import cudnn as cudnn_version

FOLDER = pathlib.Path(__file__).resolve().parent
NAMES = (
  'grouped',
  'tiles',
  'swiglu',
  'attention',
  'decode',
  'loss',
  'fp8',
  'step',
  'time',
  'peer',
)

_PLAN = flags.DEFINE_bool('plan', False, 'write the tables, measure nothing')
_SECTIONS = flags.DEFINE_list('sections', list(NAMES), 'what to measure')
_ROWS = flags.DEFINE_string('rows', '', 'pattern of the rows to measure')
_ORACLE = flags.DEFINE_string('oracle', '', 'a Python with torch for the GPU')
_REPEATS = flags.DEFINE_integer('repeats', 9, 'measurements of a median', 5)


def full() -> list[Section]:
  """All sections at full size."""
  size, repeats = gpu_step.Size(gpu_step.step_model()), _REPEATS.value
  return [
    *gpu_grouped.Grouped(gpu_grouped.Size(), False, repeats).sections(),
    *gpu_attention.Attention(gpu_attention.Size(), False, repeats).sections(),
    *gpu_fp8.Fp8(gpu_fp8.Size(), False, repeats).sections(),
    *gpu_step.Step(size, _ORACLE.value, False, repeats).sections(),
  ]


def smoke() -> list[Section]:
  """All sections at their smallest size."""
  return [
    *gpu_grouped.Grouped(gpu_grouped.smallest(), True, 1).sections(),
    *gpu_attention.Attention(gpu_attention.smallest(), True, 1).sections(),
    *gpu_fp8.Fp8(gpu_fp8.smallest(), True, 1).sections(),
    *gpu_step.Step(gpu_step.smallest(), '', True, 1).sections(),
  ]


def _circumstances() -> dict[str, str]:
  """When, where and how a section is measured."""
  versions = [f'Python {sys.version.split()[0]}']
  for name in ('jax', 'jaxlib', 'flax', 'tokamax', 'jax-triton'):
    try:
      versions.append(f'{name} {importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      versions.append(f'{name} absent')
  versions.append(f'cuDNN {cudnn_version()}')
  device = jax.devices()[0]
  versions.append(' '.join(device.client.platform_version.split()))
  date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  command = f'python experiments/benchmarks/h200.py --repeats={_REPEATS.value}'
  command += f' --sections={",".join(_SECTIONS.value)}'
  if _ROWS.value:
    command += f' --rows={shlex.quote(_ROWS.value)}'
  if _ORACLE.value:
    command += ' --oracle=PYTHON'
  return {
    'date': date,
    'gpu': f'{device.device_kind}, one of {jax.device_count()}',
    'versions': ', '.join(versions),
    'command': command,
  }


def _read(stem: pathlib.Path) -> dict[str, Any]:
  """What was found so far, by section."""
  path = script.file_of(stem, '.json')
  return json.loads(path.read_text()) if path.exists() else {}


def _keep(stem: pathlib.Path, section: Section, found: gpu_table.Found) -> None:
  """Adds rows to what earlier runs found, or replaces them."""
  known = _read(stem)
  rows = {tuple(row['labels']): row for row in known.get(section.name, [])}
  run = _circumstances()
  for labels, cells in found.items():
    rows[labels] = {'labels': list(labels), 'cells': dict(cells), 'run': run}
  known[section.name] = list(rows.values())
  script.file_of(stem, '.json').write_text(json.dumps(known, indent=1) + '\n')


def write(stem: pathlib.Path, sections: Sequence[Section]) -> None:
  """Writes the tables, every row as it was measured last.

  h200.md lies beside the folder `results/`, or with other results.
  """
  known = _read(stem)
  parts = [
    '# One Hopper GPU\n',
    'Written by `experiments/benchmarks/h200.py`, whose docstring says what is '
    'measured and how.\n',
  ]
  if not known:
    parts.append(
      'Nothing was measured yet: no GPU was at hand. `--plan` laid the tables '
      'out.\n'
    )
  for section in sections:
    rows = known.get(section.name, [])
    found = {tuple(row['labels']): row['cells'] for row in rows}
    parts.append(gpu_table.markdown(section, found))
    parts += {_run_line(row['run']): None for row in rows}
  folder = FOLDER if stem.parent == FOLDER / 'results' else stem.parent
  (folder / f'{stem.name}.md').write_text('\n'.join(parts))


def _run_line(run: Mapping[str, str]) -> str:
  where = f'{run["date"]}, {run["gpu"]}; {run["versions"]}'
  return f'{where}; `{run["command"]}`\n'


def measure(
  stem: pathlib.Path, sections: Sequence[Section], on_gpu: bool
) -> list[str]:
  """Measures --sections, writes all; returns the rows that failed.

  The peer goes first: once JAX has a GPU, it keeps most of its memory.
  """
  failed = []
  pattern = re.compile(_ROWS.value)
  for section in sorted(sections, key=lambda x: x.name != 'peer'):
    if section.name not in _SECTIONS.value:
      continue
    if on_gpu and section.name != 'peer':
      _check_device()
    cases = [x for x in section.cases if pattern.search(', '.join(x.labels))]

    def keep(row: gpu_table.Found, section=section):
      for labels, cells in row.items():
        _say(f'{section.name}: {", ".join(labels)}: {dict(cells)}')
      if any(row.values()):
        _keep(stem, section, row)
        write(stem, sections)

    found = gpu_table.measure(dataclasses.replace(section, cases=cases), keep)
    failed += [
      f'{section.name}, {", ".join(labels)}'
      for labels, cells in found.items()
      if any(cell.startswith('failed') for cell in cells.values())
    ]
  return failed


def _check_device() -> None:
  if jax.default_backend() != 'gpu':
    raise app.UsageError(
      f'this needs an NVIDIA GPU and JAX for it, found {jax.devices()[0]}; pip '
      'install "jax[cuda13]", or try --smoke'
    )


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def run(stem: pathlib.Path, is_full: bool) -> None:
  """Measures --sections, or writes the tables alone with --plan.

  Raises:
    app.UsageError: a section is unknown, or a full run finds no GPU.
    AssertionError: a row of the smoke form failed.
  """
  unknown = set(_SECTIONS.value) - set(NAMES)
  if unknown:
    raise app.UsageError(
      f'--sections={",".join(sorted(unknown))}: known are {", ".join(NAMES)}'
    )
  if _PLAN.value:
    write(stem, full())
    return
  if is_full:
    for row in measure(stem, full(), on_gpu=True):
      _say(f'failed: {row}')
    return
  failed = measure(stem, smoke(), on_gpu=False)
  if failed:
    raise AssertionError(f'failed: {"; ".join(failed)}')


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(argv, run, full=True, smoke=False)


if __name__ == '__main__':
  if '--smoke' in sys.argv:
    # Compiling takes nearly all of the time.
    os.environ['XLA_FLAGS'] = (
      os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=0'
    )
  app.run(main)
