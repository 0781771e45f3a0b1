"""Memory and time of a training step under every policy of compute.remat.

Claims: `paper` needs less memory than `none`, in the compiler's count and while
the process trains, and `full` less again. Nothing is claimed of how much, nor
of time: DeepSeek-V3 (section 3.2.3) gives no figures.
Models: a of `models.py` (18M parameters, 6 layers, written out) at 8x256 and
2x1,024 tokens, and the same with 16 layers (15 of them one scan); float32.
Command: python experiments/benchmarks/rematerialisation.py   (about 8 minutes)

Each policy trains in a process of its own; the three are asked for a step in
turn, every second round the other way about. The time is the median of the
rounds. Peaks are of the process's resident set: of all of it, which compiling a
small model's step may decide, and of the steps after the first. Temporaries are
the compiler's count for the step's program. The losses of all three must agree
at every step.
"""

from collections.abc import Sequence
import contextlib
import csv
import dataclasses
import pathlib
import statistics
import sys
import tempfile
from typing import Any

from absl import app, flags
import asked
import jax
from models import model_a, smallest, Tokens
import numpy as np
import ours
import scoreboard

from seekax.configuration.compute import ComputeConfig, REMAT_POLICIES
from seekax.configuration.model import ModelConfig
from seekax.configuration.optim import OptimConfig
from seekax.model.parameters import init_weights
from seekax.training.step import whole_step

TOLERANCE = 1e-4
CHILD = 'child'

_SMOKE = flags.DEFINE_bool('smoke', False, 'tiny model, result thrown away')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'medians are over these', 5)


@dataclasses.dataclass(frozen=True)
class Case:
  """A model and what its step reads."""

  name: str
  model: ModelConfig
  batch: int
  length: int


@dataclasses.dataclass(frozen=True)
class Row:
  """One policy of a case.

  Attributes:
    model, tokens, policy: what was measured.
    temporaries_mb: of the step's program.
    training_mb: peak of the resident set in the steps after the first.
    process_mb: of the process, compilation included.
    step_ms: median.
    relative: the same over that of `none`.
    rounds: steps that the median is over.
  """

  model: str
  tokens: str
  policy: str
  temporaries_mb: float
  training_mb: float
  process_mb: float
  step_ms: float
  relative: float
  rounds: int


class Training(ours.Ours):
  """The child's side: random weights, steps, memory."""

  def begin(self, model: dict[str, Any], remat: str) -> dict[str, Any]:
    """Weights, and an optimizer that hardly moves them."""
    self.model, self.compute = ModelConfig(**model), ComputeConfig(remat=remat)
    self.weights = jax.jit(lambda: init_weights(self.model, 0))()
    self.optim = OptimConfig(learning_rate=1e-6, warmup_steps=0)
    return self.about()

  def forget_peak(self) -> dict[str, Any]:
    """From now on `peak` is of what follows."""
    pathlib.Path('/proc/self/clear_refs').write_text('5')
    return {}

  def temporaries(self, tokens: list[list[int]]) -> dict[str, Any]:
    """The compiler's count for a step, in bytes; compiles it once more."""
    batch = ours.batch_of(np.array(tokens, np.int32))
    lowered = whole_step.lower(self.config, self.state, batch, self.rates)
    compiled = lowered.compile()
    return {'bytes': compiled.memory_analysis().temp_size_in_bytes}


def measure(
  case: Case, policies: Sequence[str], rounds: int
) -> tuple[list[Row], dict[str, str]]:
  """(a row per policy, versions).

  Raises:
    AssertionError: the policies' losses differ.
  """
  draw = Tokens(case.model.vocab_size)
  tokens = draw.rows(case.batch, case.length + 1)
  with contextlib.ExitStack() as stack:
    children, peaks = {}, {}
    for policy in policies:
      child = asked.Child([sys.executable, __file__, CHILD])
      children[policy] = stack.enter_context(child)
      about = child.ask(
        'begin', model=dataclasses.asdict(case.model), remat=policy
      )
      loss = child.ask('train_step', tokens=tokens)['loss']  # Compiles.
      peaks[policy] = child.ask('peak')['bytes']
      child.ask('forget_peak')
      print(f'{case.name}, {policy}: loss {loss:.4f}', file=sys.stderr)
    seconds = {policy: [] for policy in policies}
    for number in range(rounds):
      tokens, losses = draw.rows(case.batch, case.length + 1), {}
      for policy in list(policies)[:: -1 if number % 2 else 1]:
        answer = children[policy].ask('train_step', tokens=tokens)
        seconds[policy].append(answer['seconds'])
        losses[policy] = answer['loss']
      apart = max(losses.values()) - min(losses.values())
      if not apart < TOLERANCE * max(losses.values()):
        raise AssertionError(f'losses differ: {losses}')
    training = {
      policy: child.ask('peak')['bytes'] for policy, child in children.items()
    }
    temporaries = {
      policy: child.ask('temporaries', tokens=tokens)['bytes']
      for policy, child in children.items()
    }
  medians = {policy: statistics.median(x) for policy, x in seconds.items()}
  rows = [
    Row(
      case.name,
      f'{case.batch}x{case.length}',
      policy,
      temporaries[policy] / 1e6,
      training[policy] / 1e6,
      max(training[policy], peaks[policy]) / 1e6,
      medians[policy] * 1e3,
      medians[policy] / medians[policies[0]],
      rounds,
    )
    for policy in policies
  ]
  return rows, about['versions']


def markdown(rows: Sequence[Row]) -> str:
  """The table."""
  lines = [
    '| model | tokens | `compute.remat` | temporaries, MB | training, MB '
    '| process, MB | step, ms | over `none` |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    lines.append(
      f'| {row.model} | {row.tokens} | `{row.policy}` '
      f'| {row.temporaries_mb:,.0f} | {row.training_mb:,.0f} '
      f'| {row.process_mb:,.0f} | {row.step_ms:,.0f} | {row.relative:.2f} |'
    )
  return '\n'.join(lines)


def append(
  path: pathlib.Path, rows: Sequence[Row], where: dict[str, str]
) -> None:
  """Adds the rows to a CSV."""
  path.parent.mkdir(parents=True, exist_ok=True)
  is_new = not path.exists()
  columns = [*(x.name for x in dataclasses.fields(Row)), *where]
  with path.open('a', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, columns, lineterminator='\n')
    if is_new:
      writer.writeheader()
    writer.writerows(dataclasses.asdict(row) | where for row in rows)


def main(argv):
  if argv[1:] == [CHILD]:
    ours.serve(Training())
    return
  if _SMOKE.value:
    cases = [Case('smallest', smallest(), 1, 8)]
    results = pathlib.Path(tempfile.mkdtemp())
    policies, rounds = ('paper',), 1
  else:
    deep = dataclasses.replace(model_a(), num_layers=16)
    cases = [
      Case('a, 6 layers', model_a(), 8, 256),
      Case('a, 6 layers', model_a(), 2, 1024),
      Case('a, 16 layers', deep, 8, 256),
    ]
    results, rounds = scoreboard.RESULTS, _ROUNDS.value
    policies = REMAT_POLICIES
  found = []
  for case in cases:
    # Of each case its own: how busy the machine was meanwhile.
    circumstances = scoreboard.Circumstances()
    rows, versions = measure(case, policies, rounds)
    where = circumstances.cells(versions)
    append(results / 'rematerialisation.csv', rows, where)
    found += rows
  print(markdown(found))


if __name__ == '__main__':
  app.run(main)
