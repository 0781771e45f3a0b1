"""Where the numbers of a run go: metrics.jsonl, TensorBoard, the screen.

Rows of metrics.jsonl are JSON objects with a `kind`: train, eval, load, sample,
skipped.
"""

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

  def __init__(self, workdir: pathlib.Path, step: int, total_steps: int):
    cut_back(workdir / workdir_lib.METRICS, step)
    if (workdir / workdir_lib.SKIPPED).is_file():
      cut_back(workdir / workdir_lib.SKIPPED, step)
    for path in (workdir / workdir_lib.SAMPLES).glob('*.txt'):
      if path.stem.isdecimal() and int(path.stem) > step:
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
      rich.progress.TimeRemainingColumn(),
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
        for layer, number in enumerate(value):
          self._board.add_scalar(f'{name}/layer_{layer:02d}', number, step)
    if kind == 'sample':
      self._board.add_text('sample', values['prompt'] + values['text'], step)
      self._keep_sample(step, values['prompt'], values['text'])

  def keep_skipped(self, step: int, **values: Any) -> None:
    """Appends a row to skipped.jsonl, which is there only if it has any."""
    path = self._workdir / workdir_lib.SKIPPED
    with open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps({'step': step, **values}) + '\n')

  def show_train(
    self, step: int, row: dict[str, Any], eta: float | None
  ) -> None:
    """One line for a train row; eta in seconds, None if unknown."""
    width = len(str(self._total_steps))
    parts = [f'step {step:>{width}}/{self._total_steps}']
    parts.append(f'loss {row["loss"]:.3f}')
    if row['mtp_loss']:
      parts.append(f'mtp {row["mtp_loss"]:.3f}')
    parts.append(f'{row["bits_per_byte"]:.3f} bits/byte')
    parts.append(f'|g| {row["gradient_norm"]:.2f}')
    parts.append(f'lr {row["learning_rate"]:.1e}')
    rate = row['tokens_per_second']
    parts.append('n/a tok/s' if rate is None else f'{rate:,.0f} tok/s')
    if row['max_violation']:
      layers = ' '.join(f'{value:.2f}' for value in row['max_violation'])
      parts.append(f'maxvio {layers}')
    parts.append(f'{row["peak_memory_bytes"] / 2**30:.2f} GiB')
    mfu = row['mfu']
    parts.append('mfu n/a' if mfu is None else f'mfu {mfu:.1%}')
    if row['dollars'] is not None:
      parts.append(f'${row["dollars"]:.4f}')
    if eta is not None:
      parts.append(f'eta {int(eta) // 60}:{int(eta) % 60:02d}')
    self.say('  '.join(parts))

  def _keep_sample(self, step: int, prompt: str, text: str) -> None:
    folder = self._workdir / workdir_lib.SAMPLES
    folder.mkdir(exist_ok=True)
    with open(folder / f'{step:06d}.txt', 'a', encoding='utf-8') as file:
      file.write(f'>>> {prompt!r}\n{prompt}{text}\n\n')

  def close(self) -> None:
    """Flushes everything and takes the progress bar away."""
    self._bar.stop()
    self._board.close()
    self._file.close()


def _finite(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(item) for item in value]
  return value
