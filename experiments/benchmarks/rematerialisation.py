"""Memory and time of a training step under every policy of compute.remat.

Claims: `paper` needs less memory than `none`, in the compiler's count and while
the process trains, and `full` less again. No claim says how much less, nor
anything about time: DeepSeek-V3 (section 3.2.3) gives no figures.
Models: a of `models.py` (18M parameters, 6 layers, written out) at 8x256 and
2x1,024 tokens, and the same with 16 layers (15 of them one scan); float32.
Command: python experiments/benchmarks/rematerialisation.py   (about 8 minutes)

Each policy trains in its own process; the three are asked for a step in turn,
every second round in reverse. The time is the median of the rounds. Two peaks
of the process's resident set are kept: that of its whole life, which compiling
a small model's step may decide, and that of the steps after the first.
Temporaries are the compiler's count for the step's program. The losses of all
three must agree at every step.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
import statistics
import sys
from typing import Any

from absl import app, flags
import jax
import numpy as np

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import asked
from models import model_a, smallest, Tokens
import ours
import scoreboard

import script
from seekax.configuration.compute import ComputeConfig, REMAT_POLICIES
from seekax.configuration.model import ModelConfig
from seekax.configuration.optim import OptimConfig
from seekax.model.parameters import init_weights
from seekax.training.step import whole_step

TOLERANCE = 1e-4
CHILD = 'child'

_ROUNDS = flags.DEFINE_integer('rounds', 7, 'rounds of a median', 5)


@dataclasses.dataclass(frozen=True)
class Case:
  """A model and what its step reads: `batch` rows of `length` tokens."""

  name: str
  model: ModelConfig
  batch: int
  length: int


@dataclasses.dataclass(frozen=True)
class Row:
  """One policy of a case.

  Attributes:
    model: the case's name.
    tokens: rows and tokens of a batch.
    policy: the policy.
    temporaries_mb: temporaries of the step's program.
    training_mb: peak of the resident set in the steps after the first.
    process_mb: peak of the resident set, compilation included.
    step_ms: median time of a step.
    relative: this time over that of `none`.
    rounds: steps of the median.
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
    """Makes weights, and an optimizer that hardly moves them."""
    self.model, self.compute = ModelConfig(**model), ComputeConfig(remat=remat)
    self.weights = jax.jit(lambda: init_weights(self.model, 0))()
    self.optim = OptimConfig(learning_rate=1e-6, warmup_steps=0)
    return self.about()

  def forget_peak(self) -> dict[str, Any]:
    """Makes `peak` start anew."""
    pathlib.Path('/proc/self/clear_refs').write_text('5')
    return {}

  def temporaries(self, tokens: list[list[int]]) -> dict[str, Any]:
    """The compiler's count for a step, in bytes; compiles it once more."""
    batch = ours.batch_of(np.array(tokens, np.int32))
    lowered = whole_step.lower(self.config, self.state, batch, self.rates)
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None
    return {'bytes': analysis.temp_size_in_bytes}


def measure(
  case: Case, policies: Sequence[str], rounds: int
) -> tuple[list[Row], dict[str, str]]:
  """A row per policy, and versions.

  Raises:
    AssertionError: the policies' losses differ.
  """
  draw = Tokens(case.model.vocab_size)
  tokens = draw.rows(case.batch, case.length + 1)
  with contextlib.ExitStack() as stack:
    children, peaks, about = {}, {}, {}
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
  """The table of all rows."""
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


def full_cases() -> list[Case]:
  """The cases of a full run."""
  deep = dataclasses.replace(model_a(), num_layers=16)
  return [
    Case('a, 6 layers', model_a(), 8, 256),
    Case('a, 6 layers', model_a(), 2, 1024),
    Case('a, 16 layers', deep, 8, 256),
  ]


def run(stem: pathlib.Path, smoke: bool) -> None:
  """Measures every case, appends its rows, prints the table."""
  cases, policies, rounds = full_cases(), REMAT_POLICIES, _ROUNDS.value
  if smoke:
    cases, policies, rounds = (
      [Case('smallest', smallest(), 1, 8)],
      ('paper',),
      1,
    )
  found = []
  for case in cases:
    # Every case says how busy the machine was meanwhile.
    circumstances = scoreboard.Circumstances()
    rows, versions = measure(case, policies, rounds)
    where = circumstances.cells(versions)
    script.append_rows(
      script.file_of(stem, '.csv'),
      [dataclasses.asdict(row) | where for row in rows],
    )
    found += rows
  print(markdown(found))


def main(argv: Sequence[str]) -> None:
  if argv[1:] == [CHILD]:
    ours.serve(Training())
    return
  script.run_as_asked(argv, run, full=False, smoke=True)


if __name__ == '__main__':
  app.run(main)
