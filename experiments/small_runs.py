"""What experiments that train share: a labelled corpus, a run, a comparison.

Every row of the corpus belongs to one domain of `DOMAINS`; tokens are ASCII
codes, also where they mean nothing. Arms of a comparison are paired by seed:
the same batches in the same order, and the same initial weights where shapes
allow (an initial weight depends on its name and the seed).

Letters: B batch, L positions, N layers, E experts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import itertools
import math
import pathlib
import sys
import tempfile
from typing import Any

from absl import app, flags
import jax
from matplotlib import figure as figure_lib
import numpy as np

import measurements
from seekax.configuration.config import Config
from seekax.configuration.data import DataConfig
from seekax.configuration.model import ModelConfig
from seekax.configuration.optim import OptimConfig
from seekax.configuration.train import TrainConfig
from seekax.data import sources
from seekax.data.pipeline import Batch
from seekax.inference.scoring import all_logits
from seekax.machine import compiling, host_memory
from seekax.model.parameters import init_weights
from seekax.model.transformer import Transformer
from seekax.training import losses as losses_lib
from seekax.training import step as step_lib
from seekax.training.schedules import Schedule
from seekax.training.state import start_from, TrainState
import verdicts

VOCAB = 128
DOMAINS = ('markov', 'arithmetic', 'brackets', 'names', 'text')
# Smaller forms of names and of arithmetic, learned in a thousand steps.
LETTERS, DIGITS = 'letters', 'digits'
_ALL_DOMAINS = (*DOMAINS, LETTERS, DIGITS)
# Far from the seeds of training, which are small.
_HELDOUT_SEED = 10_000


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is trained and measured."""

  seeds: int = 3
  steps: int = 400
  rows: int = 16
  length: int = 64
  width: int = 64
  heldout: int = 16  # batches


SMOKE = Size(seeds=2, steps=4, rows=2, length=16, width=16, heldout=1)


@dataclasses.dataclass(frozen=True)
class Rows:
  """Sequences of the corpus.

  Attributes:
    tokens: int32 [B, L + 1].
    domain_B: number in `DOMAINS`.
    answers: bool [B, L + 1], tokens that follow from those before: the second
      half of a name seen before in its row, the digits of a sum's result.
  """

  tokens: np.ndarray
  domain_B: np.ndarray
  answers: np.ndarray


def model_of(size: Size, **changes: Any) -> ModelConfig:
  """MLA and sigmoid-routed experts, no MTP, unless `changes` say otherwise."""
  small = dict(
    vocab_size=VOCAB,
    embed_dim=size.width,
    num_layers=3 if size != SMOKE else 1,
    num_dense_layers=1 if size != SMOKE else 0,
    context_length=size.length,
    num_heads=4,
    query_latent_dim=0,
    kv_latent_dim=size.width // 2,
    nope_head_dim=16,
    rope_head_dim=16,
    value_head_dim=16,
    mlp_dim=2 * size.width,
    expert_dim=size.width // 2,
    num_experts=16,
    experts_per_token=4,
    num_expert_groups=1,
    num_kept_groups=1,
    routed_scale=1.0,
    mtp_depth=0,
    init_std=0.02,
    rope_scaling='none',
  )
  return ModelConfig(**(small | changes))


def config_of(
  size: Size, model: ModelConfig, rate: float = 3e-3, **train: Any
) -> Config:
  """A run of `size`: warm-up, then a cosine to a tenth of the rate."""
  return Config(
    model=model,
    data=DataConfig(
      sequence_length=size.length, batch_size=size.rows, num_shards=1
    ),
    optim=OptimConfig(
      learning_rate=rate,
      final_learning_rate=rate / 10,
      warmup_steps=size.steps // 10,
      constant_tokens=0,
    ),
    train=TrainConfig(
      steps=size.steps,
      precision='float32',
      **{'balance_weight': 0.0, 'bias_update_rate': 0.01} | train,
    ),
  )


@functools.cache
def _text() -> tuple[np.ndarray, np.ndarray]:
  """Training and held-out ASCII of Python's library; a file is in one."""
  parts = ([], [])
  for number, document in enumerate(sources.read_documents(sources.STDLIB)):
    content = document.text.encode('ascii', 'ignore')
    parts[number % 20 == 0].append(np.frombuffer(content, np.uint8))
  training, heldout = map(np.concatenate, parts)
  return training, heldout


@functools.cache
def _markov_table() -> np.ndarray:
  """Four possible next tokens after every two."""
  return np.random.default_rng(0).integers(VOCAB, size=(VOCAB, VOCAB, 4))


def _markov(rng: np.random.Generator, length: int) -> list[int]:
  """Order 2; two of its 128 tokens back only 16 classes matter."""
  tokens = list(rng.integers(VOCAB, size=2))
  for choice in np.minimum(rng.geometric(0.5, size=length) - 1, 3):
    tokens.append(_markov_table()[tokens[-2] % 16, tokens[-1], choice])
  return tokens[:length]


def _sums(
  rng: np.random.Generator, length: int, terms: int, modulus: int
) -> tuple[list[int], list[bool]]:
  """Modular sums, written out, and which digits are of results."""
  numbers = rng.integers(modulus, size=(length // 6 + 1, terms))
  line = ''.join(
    f'{"+".join(map(str, row))}={sum(row) % modulus};' for row in numbers
  )
  asked = itertools.accumulate(
    line, lambda inside, x: x != ';' and (inside or x == '='), initial=False
  )
  result = [old and x != ';' for old, x in zip(asked, line, strict=False)]
  return list(line.encode()[:length]), result[:length]


def _brackets(rng: np.random.Generator, length: int) -> list[int]:
  """Three kinds, correctly nested."""
  tokens, open_ones = [], []
  for opens, kind in zip(
    rng.random(length) < 0.5, rng.integers(3, size=length), strict=True
  ):
    if opens or not open_ones:
      open_ones.append(kind)
      tokens.append(ord('([{'[kind]))
    else:
      tokens.append(ord(')]}'[open_ones.pop()]))
  return tokens


def _names(
  rng: np.random.Generator,
  length: int,
  firsts: np.ndarray,
  seconds: np.ndarray,
  count: int,
) -> tuple[list[int], list[bool]]:
  """Names of two random tokens, a few of them per row, and which recur."""
  first = rng.permutation(firsts)[:count]
  second = seconds[rng.integers(len(seconds), size=count)]
  order = rng.integers(count, size=length // 2 + 1)
  seen, tokens, recalled = set(), [], []
  for name in order:
    tokens += [first[name], second[name]]
    recalled += [False, name in seen]
    seen.add(name)
  return tokens[:length], recalled[:length]


# Of (generator, length): tokens, and which of them follow from those before.
_WITH_ANSWERS = {
  'names': functools.partial(
    _names, firsts=np.arange(VOCAB), seconds=np.arange(VOCAB), count=8
  ),
  LETTERS: functools.partial(
    _names,
    firsts=np.frombuffer(b'ABCDEFGH', np.uint8),
    seconds=np.frombuffer(b'abcdefgh', np.uint8),
    count=4,
  ),
  'arithmetic': functools.partial(_sums, terms=2, modulus=97),
  DIGITS: functools.partial(_sums, terms=2, modulus=10),
}


def draw_rows(
  rng: np.random.Generator,
  count: int,
  length: int,
  domains: tuple[str, ...] = DOMAINS,
  heldout: bool = False,
) -> Rows:
  """`count` rows of `length` + 1 tokens, each of a domain chosen at random."""
  tokens = np.zeros((count, length + 1), np.int32)
  answers = np.zeros((count, length + 1), bool)
  domain_B = rng.integers(len(domains), size=count)
  for row, number in enumerate(domain_B):
    kind = domains[number]
    if kind in _WITH_ANSWERS:
      tokens[row], answers[row] = _WITH_ANSWERS[kind](rng, length + 1)
    elif kind == 'text':
      text = _text()[heldout]
      start = rng.integers(len(text) - length)
      tokens[row] = text[start : start + length + 1]
    else:
      make = {'markov': _markov, 'brackets': _brackets}[kind]
      tokens[row] = make(rng, length + 1)
  labels_B = np.array([_ALL_DOMAINS.index(domains[x]) for x in domain_B])
  return Rows(tokens, labels_B, answers)


def batch_of(tokens: np.ndarray) -> Batch:
  """Whole rows [B, L + 1] as a batch, a document each."""
  inputs_BL = tokens[:, :-1]
  ones_BL = np.ones_like(inputs_BL)
  positions_BL = np.broadcast_to(
    np.arange(inputs_BL.shape[1], dtype=np.int32), inputs_BL.shape
  )
  return Batch(inputs_BL, tokens[:, 1:], positions_BL, ones_BL, ones_BL)


def training_batches(
  size: Size, seed: int, domains: tuple[str, ...] = DOMAINS
) -> Iterator[Batch]:
  """The batches of a seed, the same for every arm."""
  rng = np.random.default_rng(seed)
  for _ in range(size.steps):
    yield batch_of(draw_rows(rng, size.rows, size.length, domains).tokens)


def heldout_rows(size: Size, domains: tuple[str, ...] = DOMAINS) -> list[Rows]:
  """The same for every seed."""
  rng = np.random.default_rng(_HELDOUT_SEED)
  return [
    draw_rows(rng, size.rows, size.length, domains, heldout=True)
    for _ in range(size.heldout)
  ]


# Compiled once for all seeds.
_initial_weights = jax.jit(init_weights, static_argnums=0)
_all_logits = compiling.jit(all_logits, static_argnums=0)


def initial_state(config: Config, seed: int) -> TrainState:
  """The state at step 0 of a seed; config.train.seed plays no part."""
  return start_from(config, _initial_weights(config.model, seed))


def _as_compiled(config: Config) -> Config:
  """The same for runs that differ only in what the schedule hands over."""
  plain = TrainConfig()
  return dataclasses.replace(
    config,
    optim=dataclasses.replace(
      config.optim, learning_rate=1.0, final_learning_rate=1.0
    ),
    train=dataclasses.replace(
      config.train,
      steps=plain.steps,
      bias_update_rate=plain.bias_update_rate,
      mtp_weight=plain.mtp_weight,
    ),
  )


def train(
  config: Config,
  state: TrainState,
  batches: Iterator[Batch],
  watch: Callable[[int, TrainState], None] = lambda *_: None,
) -> tuple[TrainState, list[step_lib.Metrics]]:
  """The library's training step on every batch; `state` is donated.

  `watch` is shown the steps taken and the state after each of them.

  Returns:
    (the final state, the metrics of every step on the host).
  """
  schedule, found, compiled = Schedule(config), [], _as_compiled(config)
  for number, batch in enumerate(batches):
    rates = schedule.rates(number)
    state, metrics = step_lib.train_step(compiled, state, [batch], rates)
    found.append(metrics)
    watch(number + 1, state)
  return state, jax.device_get(found)


@functools.partial(compiling.jit, static_argnums=0)
def _sums(config, weights, batch):
  return losses_lib.loss_sums(weights, batch, config)[1]


def evaluate(
  config: Config,
  state: TrainState,
  rows: list[Rows],
  sums: Callable[..., losses_lib.LossSums] = _sums,
) -> tuple[float, np.ndarray]:
  """(Nats per token over all rows, load [N, E]; [0, 0] without experts).

  `sums` takes (config, weights, batch).
  """
  found = [
    jax.device_get(sums(config, state.weights, batch_of(part.tokens)))
    for part in rows
  ]
  loss = sum(x.main for x in found) / sum(x.tokens for x in found)
  if not found[0].load:
    return float(loss), np.zeros((0, 0))
  return float(loss), np.sum([x.load['layers'] for x in found], axis=0)


def accuracy(
  config: Config, state: TrainState, rows: list[Rows]
) -> dict[str, float]:
  """Of each domain with answers, the share that is the likeliest token."""
  # MTP modules answer nothing.
  model = Transformer(dataclasses.replace(config.model, mtp_depth=0))
  right, asked = np.zeros((2, len(_ALL_DOMAINS)))
  for part in rows:
    logits_BLV, _ = _all_logits(model, state.weights, part.tokens[:, :-1])
    best_BL = np.asarray(logits_BLV).argmax(axis=-1)
    answers_BL = part.answers[:, 1:]
    hit_BL = answers_BL & (best_BL == part.tokens[:, 1:])
    np.add.at(right, part.domain_B, hit_BL.sum(axis=1))
    np.add.at(asked, part.domain_B, answers_BL.sum(axis=1))
  return {
    name: float(right[k] / asked[k])
    for k, name in enumerate(_ALL_DOMAINS)
    if asked[k]
  }


def say(arm: str, seed: int, **numbers: float) -> None:
  """Progress, to stderr."""
  words = ', '.join(f'{name} {value:.4f}' for name, value in numbers.items())
  print(f'{arm}, seed {seed}: {words}', file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Difference:
  """A mean over paired seeds and its standard error."""

  mean: float
  error: float

  @property
  def sign(self) -> float:
    """1 above two standard errors, 0 below minus two, NaN between."""
    if not abs(self.mean) > 2 * self.error:
      return math.nan
    return float(self.mean > 0)

  def __str__(self) -> str:
    if math.isnan(self.mean):
      return 'not measured'
    return f'{self.mean:+.4f}, standard error {self.error:.4f}'


def paired(
  measured: dict[str, dict[str, float]],
  first: str,
  second: str,
  name: str,
  second_name: str = '',
) -> Difference:
  """`name` of the first arm minus that of the second, seed by seed.

  NaN where runs of either are missing.

  Args:
    measured: numbers of every job 'arm, seed n'.
    first: an arm.
    second: another one.
    name: of the number.
    second_name: of the second arm's number if it is another one.
  """
  of_first = values(measured, first, name)
  of_second = values(measured, second, second_name or name)
  if not (len(of_first) and len(of_first) == len(of_second)):
    return Difference(math.nan, math.nan)
  differences = of_first - of_second
  error = differences.std(ddof=1) / math.sqrt(len(differences))
  return Difference(float(differences.mean()), float(error))


def order(
  measured: dict[str, dict[str, float]],
  claim: str,
  first: str,
  second: str,
  name: str,
  second_name: str = '',
) -> verdicts.Claim:
  """The claim that the first arm's number is above the second's, as `paired`.

  Ours is 1 if it is by more than two standard errors, 0 if it is below by as
  much, NaN (inconclusive) between.
  """
  difference = paired(measured, first, second, name, second_name)
  return verdicts.Claim(
    claim, '', '1', lambda: difference.sign, 0.0, str(difference)
  )


def values(
  measured: dict[str, dict[str, float]], arm: str, name: str
) -> np.ndarray:
  """A number of an arm, of all its seeds in order."""
  seed, found = 0, []
  while (job := f'{arm}, seed {seed}') in measured:
    found.append(measured[job][name])
    seed += 1
  return np.array(found)


def define_flags(script: str) -> None:
  """Flags of a script; results lie in results/ beside it."""
  flags.DEFINE_bool('smoke', False, 'small, and keep nothing')
  flags.DEFINE_string(
    'outdir',
    str(pathlib.Path(script).resolve().parent / 'results'),
    'folder of the CSVs and the PNG',
  )


def run_as_asked(
  argv: Sequence[str],
  run: Callable[[pathlib.Path, Any], None],
  full: Any,
  smoke: Any,
) -> None:
  """A script's main: `run` of (folder of results, the size that is asked)."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if flags.FLAGS.smoke:
    with tempfile.TemporaryDirectory() as folder:
      run(pathlib.Path(folder), smoke)
    return
  run(pathlib.Path(flags.FLAGS.outdir), full)


def measure_and_publish(
  train_one: Callable[[str, int], measurements.Numbers],
  jobs: Iterable[tuple[str, int]],
  claims: Callable[[dict[str, measurements.Numbers]], list[verdicts.Claim]],
  draw: Callable[..., None],
  outdir: pathlib.Path,
  stem: str,
) -> None:
  """Trains the jobs (arm, seed) that are missing, judges and draws.

  Args:
    train_one: of (arm, seed), the numbers to keep.
    jobs: all that are wanted.
    claims: of the numbers of every job 'arm, seed n'.
    draw: of (the same numbers, the rows of verdicts, the PNG's path).
    outdir: folder of `stem`_runs.csv, `stem`.csv and `stem`.png.
    stem: name of all three.
  """
  host_memory.keep_freed_memory()
  measured = measurements.measure_missing(
    {
      f'{arm}, seed {seed}': functools.partial(train_one, arm, seed)
      for arm, seed in jobs
    },
    outdir / f'{stem}_runs.csv',
  )
  verdicts.publish(
    claims(measured), outdir, stem, functools.partial(draw, measured)
  )


def add_title(
  figure: figure_lib.Figure, subject: str, rows: list[verdicts.Row]
) -> None:
  """The subject and how the verdicts went."""
  figure.suptitle(
    f'{subject}: {count(rows)}',
    x=0.01,
    ha='left',
    fontsize=14,
    weight='bold',
  )
  for axes in figure.axes:
    axes.spines[['top', 'right']].set_visible(False)


def count(rows: list[verdicts.Row]) -> str:
  """How many rows have each verdict, in words."""
  kinds = verdicts.REPRODUCED, verdicts.REFUTED, verdicts.INCONCLUSIVE
  return ', '.join(
    f'{sum(row.verdict == kind for row in rows)} {kind}' for kind in kinds
  )
