"""The planner's time of a training step beside the clock, on two CPU cores.

Claim: none. The constants of the planner's model of time were fitted on GPUs
(docs/planning.md); this script asks what they are worth on a CPU, for which the
planner knows only the rates of products and of memory ('cpu' in
planning/hardware.py).
Models: one of width 64, a and b of `models.py`, and a twice as wide; float32,
cross-entropy alone, 2,048 tokens.
Command: python experiments/benchmarks/planner_on_cpu.py   (about 3 minutes)

Each step is timed by the clock and by the processors' own time, halved for the
two cores. On a quiet machine the two are near; other programs stretch the first
without limit, and also the second, because they use caches and memory. So the
table also shows the undisturbed rounds of `make bench`, for a and b. Times are
medians. A run appends to benchmarks/results/planner_on_cpu.csv, and --table
prints the newest rows without measuring.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import statistics
import sys
import time

from absl import app, flags
import jax

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from models import model_a, model_b, smallest, Tokens
import ours
import scoreboard

import script
from seekax.configuration import presets
from seekax.configuration.model import ModelConfig
from seekax.model.parameters import init_weights
from seekax.planning import hardware, step_time
from seekax.planning.layout import Layout
from seekax.planning.parameters import count_parameters
from seekax.planning.run import Run

_ROUNDS = flags.DEFINE_integer('rounds', 5, 'rounds of a median', 1)
_TABLE = flags.DEFINE_bool(
  'table', False, 'print the newest rows, predicted anew, and end'
)
_BENCH = scoreboard.FOLDER / 'results.json'
_CORES = 2
_BATCH, _LENGTH = 8, 256


def models() -> dict[str, ModelConfig]:
  """The models that are timed, from the smallest to the largest."""
  a = model_a()
  small = dataclasses.replace(presets.tiny(), mtp_depth=0, rope_scaling='none')
  return {
    'width 64': dataclasses.replace(small, context_length=_LENGTH),
    'a': a,
    'b': model_b(),
    'a, twice as wide': dataclasses.replace(
      a,
      embed_dim=2 * a.embed_dim,
      query_latent_dim=2 * a.query_latent_dim,
      kv_latent_dim=2 * a.kv_latent_dim,
      num_heads=2 * a.num_heads,
      mlp_dim=2 * a.mlp_dim,
      expert_dim=2 * a.expert_dim,
    ),
  }


def predicted_seconds(model: ModelConfig, batch: int, length: int) -> float:
  """The planner's time of a step."""
  run = Run(
    model,
    hardware.DEVICES['cpu'],
    Layout(micro_batch=batch, remat='none'),
    batch,
    length,
    'float32',
  )
  return step_time.predict(run).seconds


def measured_seconds(
  model: ModelConfig, batch: int, length: int, rounds: int
) -> tuple[float, float]:
  """Median seconds by the clock, and of the processors' time per core."""
  trainer = ours.Ours()
  trainer.model = model
  trainer.weights = init_weights(model, 0)
  trainer.start_training(1e-4, [0.9, 0.95], 1e-8, 0.1, 1.0)
  tokens = Tokens(model.vocab_size)
  clock, processors = [], []
  for _ in range(rounds + 1):
    rows = tokens.rows(batch, length + 1)
    began = time.process_time()
    answer = trainer.train_step(rows)
    processors.append((time.process_time() - began) / _CORES)
    clock.append(answer['seconds'])
  # The first compiles.
  return statistics.median(clock[1:]), statistics.median(processors[1:])


def table(rows: list[dict]) -> str:
  """Predicted and measured times and the errors, as Markdown."""
  bench = {
    row['name'].removeprefix('train_step_'): 1e3
    * _BATCH
    * _LENGTH
    / row['ours']
    for row in json.loads(_BENCH.read_text())
    if row['name'].startswith('train_step_') and row['ours']
  }
  lines = [
    '| model | predicted | clock | processors | `make bench` | others took |',
    '|---|---|---|---|---|---|',
  ]
  for row in rows:
    predicted = float(row['predicted_ms'])
    measured = [float(row['clock_ms']), float(row['processors_ms'])]
    measured.append(bench.get(row['model'], 0))
    cells = [
      f'{ms:,.0f} ms ({predicted / ms - 1:+.0%})' if ms else '-'
      for ms in measured
    ]
    lines.append(
      f'| {row["model"]} | {predicted:,.0f} ms | {" | ".join(cells)} | '
      f'{float(row["busy_with_others"]):.0%} |'
    )
  return '\n'.join(lines)


def newest_table(stem: pathlib.Path) -> str:
  """The table of the newest rows, with the planner's times of today."""
  rows = script.read_rows(script.file_of(stem, '.csv'))[-len(models()) :]
  for row in rows:
    seconds = predicted_seconds(models()[row['model']], _BATCH, _LENGTH)
    row['predicted_ms'] = f'{1e3 * seconds:.4g}'
  return table(rows)


def run(stem: pathlib.Path, smoke: bool) -> None:
  """Times every model, appends the rows, prints the table."""
  if _TABLE.value:
    print(newest_table(stem))
    return
  cases = {'smallest': smallest()} if smoke else models()
  batch, length = (2, 16) if smoke else (_BATCH, _LENGTH)
  circumstances = scoreboard.Circumstances()
  rows = []
  for name, model in cases.items():
    predicted = predicted_seconds(model, batch, length)
    clock, processors = measured_seconds(
      model, batch, length, 1 if smoke else _ROUNDS.value
    )
    rows.append(
      {
        'model': name,
        'parameters': count_parameters(model).total,
        'predicted_ms': f'{1e3 * predicted:.4g}',
        'clock_ms': f'{1e3 * clock:.4g}',
        'processors_ms': f'{1e3 * processors:.4g}',
      }
    )
  where = circumstances.cells({'jax': jax.__version__})
  rows = [row | where for row in rows]
  script.append_rows(script.file_of(stem, '.csv'), rows)
  print(table(rows))


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(argv, run, full=False, smoke=True)


if __name__ == '__main__':
  app.run(main)
