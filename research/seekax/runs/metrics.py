"""Writes the metrics of a run to metrics.jsonl, TensorBoard and the screen.

Rows of metrics.jsonl are JSON objects with a `kind`: train, eval, load, sample,
skipped.
"""

from collections.abc import Sequence
import json
import math
import pathlib
import resource
import sys
from typing import Any

import jax
import rich.console
import rich.progress
from tensorboardX import SummaryWriter

from seekax.configuration.model import ModelConfig
from seekax.files import JsonObject
from seekax.storage import workdir as workdir_lib
from seekax.storage.rows import cut_back

# Kept as lists in metrics.jsonl, too long for the screen and for scalars.
_LISTS = (
  'max_violation',
  'max_violation_mtp',
  'load_entropy',
  'unused_experts',
)
_LISTS += ('mtp_acceptance',)
# The keys among these that only MTP modules have.
_MTP_LISTS = ('max_violation_mtp', 'mtp_acceptance')


def router_names(model: ModelConfig) -> list[str]:
  """Names of all routers: layers count from 0, those without experts too."""
  first = model.num_layers - model.num_expert_layers
  layers = [f'layer_{n:02d}' for n in range(first, model.num_layers)]
  return layers + [f'mtp_{k}' for k in range(1, model.mtp_depth + 1)]


def peak_memory_bytes() -> int:
  """Device peak on an accelerator, largest resident set on a CPU."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    return stats['peak_bytes_in_use']
  # Linux counts in KiB, macOS in bytes.
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MetricsWriter:
  """Writes rows to file and TensorBoard, and train rows to the screen.

  On a terminal a progress bar stands under the last line; piped, there are
  lines alone.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    step: int,
    total_steps: int,
    routers: Sequence[str] = (),
  ):
    """Opens the files, and drops rows of steps after `step`.

    Args:
      workdir: folder of the run.
      step: step that the run goes on from.
      total_steps: number of steps of the whole run.
      routers: names of all routers, those of the MTP modules last.
    """
    self._routers = routers
    cut_back(workdir / workdir_lib.METRICS, step)
    if (workdir / workdir_lib.SKIPPED).is_file():
      cut_back(workdir / workdir_lib.SKIPPED, step)
    for path in (workdir / workdir_lib.SAMPLES).glob('*.txt'):
      # Only names that a run gives: the user may keep files there, too.
      number = int(path.stem) if path.stem.isdecimal() else 0
      if number > step and path.name == _sample_name(number):
        path.unlink()
    self._workdir = workdir
    self._file = open(workdir / workdir_lib.METRICS, 'a', encoding='utf-8')
    self._board = SummaryWriter(
      str(workdir / workdir_lib.TENSORBOARD), purge_step=step + 1
    )
    self._total_steps = total_steps
    self._console = rich.console.Console(stderr=True, highlight=False)
    self._bar = rich.progress.Progress(
      rich.progress.TextColumn('{task.description}'),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TimeRemainingColumn(compact=True),
      console=self._console,
      disable=not self._console.is_terminal,
    )
    self._task = self._bar.add_task('steps', total=total_steps, completed=step)
    self._bar.start()

  def say(self, text: str) -> None:
    """A line on stderr, above the progress bar if there is one."""
    self._console.print(text, soft_wrap=True, markup=False)

  def advance(self, step: int) -> None:
    """Moves the progress bar."""
    self._bar.update(self._task, completed=step)

  def write(self, kind: str, step: int, **values: Any) -> None:
    """Appends a row; what isn't finite is written as null."""
    row = {'kind': kind, 'step': step, **values}
    self._file.write(json.dumps(_finite(row)) + '\n')
    self._file.flush()
    for name, value in values.items():
      if isinstance(value, (int, float)) and math.isfinite(value):
        self._board.add_scalar(f'{kind}/{name}', value, step)
      elif name in _LISTS:
        for router, number in zip(self._names(name, value), value, strict=True):
          self._board.add_scalar(f'{name}/{router}', number, step)
    if kind == 'sample':
      self._board.add_text('sample', values['prompt'] + values['text'], step)
      self._keep_sample(step, values['prompt'], values['text'])

  def _names(self, name: str, values: Sequence[float]) -> Sequence[str]:
    """Names of the routers that the values of a list belong to."""
    if len(self._routers) < len(values):
      return [str(i) for i in range(len(values))]
    if name in _MTP_LISTS:
      return self._routers[-len(values) :] if values else ()
    return self._routers[: len(values)]

  def keep_skipped(self, step: int, **values: Any) -> None:
    """Appends a row to skipped.jsonl, which is there only if it has any."""
    path = self._workdir / workdir_lib.SKIPPED
    with open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps({'step': step, **values}) + '\n')

  def show_train(self, step: int, row: JsonObject, eta: float | None) -> None:
    """One line for a train row; eta in seconds, None if unknown.

    Nothing is shown that isn't known. On a terminal the line fits its width,
    the last fields going first, and the bar below has the time that is left.
    """
    shown = _shown(step, self._total_steps, row)
    if self._console.is_terminal:
      while sum(map(len, shown)) + 2 * len(shown) > self._console.width:
        shown.pop()
    elif eta is not None:
      shown.append(f'eta {int(eta) // 60}:{int(eta) % 60:02d}')
    self.say('  '.join(shown))

  def _keep_sample(self, step: int, prompt: str, text: str) -> None:
    folder = self._workdir / workdir_lib.SAMPLES
    folder.mkdir(exist_ok=True)
    with open(folder / _sample_name(step), 'a', encoding='utf-8') as file:
      file.write(f'>>> {prompt!r}\n{prompt}{text}\n\n')

  def close(self) -> None:
    """Flushes everything and takes the progress bar away."""
    self._bar.stop()
    self._board.close()
    self._file.close()


class Silence(MetricsWriter):
  """A writer that writes nothing, for all processes but the first."""

  def __init__(self):
    pass

  def say(self, text: str) -> None:
    del text

  def advance(self, step: int) -> None:
    del step

  def write(self, kind: str, step: int, **values: Any) -> None:
    del kind, step, values

  def keep_skipped(self, step: int, **values: Any) -> None:
    del step, values

  def show_train(self, step: int, row: JsonObject, eta: float | None) -> None:
    del step, row, eta

  def close(self) -> None:
    pass


def _shown(step: int, steps: int, row: JsonObject) -> list[str]:
  """The fields of a train row for the screen, the most important first."""
  rate, mfu, dollars = row['tokens_per_second'], row['mfu'], row['dollars']
  shown = [
    f'step {step:>{len(str(steps))}}/{steps}',
    f'loss {row["loss"]:.3f}',
    f'{row["bits_per_byte"]:.3f} bits/byte',
  ]
  if rate is not None:
    shown.append(f'{rate:,.0f} tok/s')
  if mfu is not None:
    shown.append(f'mfu {mfu:.1%}')
  if dollars is not None:
    shown.append(f'${dollars:.4f}')
  shown += [f'|g| {row["gradient_norm"]:.2f}', f'lr {row["learning_rate"]:.1e}']
  if row['mtp_loss']:
    shown.append(f'mtp {row["mtp_loss"]:.3f}')
  if violations := row['max_violation']:
    mean = sum(violations) / len(violations)
    shown.append(f'max violation {mean:.2f}, at most {max(violations):.2f}')
  return [*shown, f'{row["peak_memory_bytes"] / 2**30:.2f} GiB']


def _sample_name(step: int) -> str:
  return f'{step:06d}.txt'


def _finite(value: object) -> object:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(item) for item in value]
  return value
