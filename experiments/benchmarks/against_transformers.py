"""Training, prefill, decoding and memory beside transformers on the CPU.

Claims: `scoreboard.CLAIMS`, with the same weights in both frameworks, in
float32, at two threads and with the same allocator settings.
Models: a (18M parameters: 32 experts top-4, groups 4/2) and b (64 experts
top-6, 2 shared, no groups), random weights, exported by `seekax convert`.
Command: python experiments/benchmarks/against_transformers.py \\
  --oracle=.venv-parity/bin/python   (about 6 minutes; `make bench` runs it)

Each framework answers in a child process (`ours.py`,
`third_party/transformers/peer.py`), asked in turn; every second round begins
with the other one. A row shows medians of at least 5 rounds after a warm-up. A
round in which other programs took more than a tenth of the processors doesn't
count, and a row without five other rounds is not measured: torch's threads wait
for each other at every operation and, disturbed, take ten times as long. Before
that, transformers' implementations of the experts are tried and the fastest is
kept for each task. A run stops if loss or logits differ by more than 1e-4.

- training: forward, cross-entropy, backward, clipping, AdamW on 8x256 random
  tokens, new ones every step; no MTP, no balance loss, no moving bias.
- prefill: 8x512 tokens into a cache, logits of the last position alone.
- decode: 128 greedy steps after prompts of 128 tokens, which aren't timed.
- train_memory: peak resident set of a fresh process that loads model a and
  trains; median of three processes each.
- cache_bytes: ours is counted on the shapes of the real cache at V3's full
  size. Transformers' live cache of model a shows which of two formulas holds
  (latents, or whole keys and values of all heads: it depends on the version);
  that formula is applied to V3's published config.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import statistics
import sys
import tempfile
from typing import Any

from absl import app, flags

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import asked
from models import model_a, model_b, smallest, Tokens
import pair as pair_lib
from pair import Pair
import scoreboard

import script
from seekax.configuration.model import ModelConfig
from seekax.configuration.presets import v3_671b
from seekax.storage.published_config import published_config

TOLERANCE = 1e-4
# Implementations to try. 'batched_mm' copies an expert's weights for every
# token that chose it: in training 19 GB of address space were too little, and
# prefill took 14 times as long.
EXPERTS = {
  'train_step': ('grouped_mm', 'eager'),
  'prefill': ('grouped_mm', 'eager'),
  'decode': ('grouped_mm', 'eager', 'batched_mm'),
}
# The rate is so low that the routing stays as it began, as balancing, which is
# off here, would keep it: at 3e-4 on random tokens it collapsed within 25 steps
# to the same 4 of 32 experts for every token.
OPTIMIZER = {
  'learning_rate': 1e-6,
  'betas': [0.9, 0.95],
  'eps': 1e-8,
  'weight_decay': 0.1,
  'clip_norm': 1.0,
}
MEMORY_STEPS, MEMORY_PROCESSES = 5, 3

_ORACLE = flags.DEFINE_string('oracle', '', 'a Python with transformers')
_PARTS = flags.DEFINE_list(
  'parts', ['inference', 'training', 'memory'], 'what to measure'
)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'rounds of a median', 5)


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is asked at once: (sequences, tokens), steps, tokens."""

  train: tuple[int, int] = (8, 256)
  steps: int = 3
  prefill: tuple[int, int] = (8, 512)
  prompt: int = 128
  new_tokens: int = 128
  batches: tuple[int, ...] = (1, 8)


@dataclasses.dataclass
class Found:
  """Rows so far, and how each was measured."""

  rows: list[scoreboard.Row] = dataclasses.field(default_factory=list)
  notes: dict[str, str] = dataclasses.field(default_factory=dict)

  def add(self, row: scoreboard.Row, note: str) -> None:
    """Keeps a measured row, and prints what was found."""
    said = 'not measured'
    if row.ratio is not None:
      self.rows.append(row)
      self.notes[row.name] = note
      said = f'{row.ours:.6g} against {row.peer:.6g} {row.unit}, '
      said += f'{row.ratio:.2f}'
    print(f'{row.name}: {said}; {note}', file=sys.stderr, flush=True)


def export(model: ModelConfig, folder: pathlib.Path) -> pathlib.Path:
  """Writes random weights as a published folder, by way of a workdir."""
  target = folder / 'published'
  with pair_lib.start_ours() as child:
    _make(child, model, folder, target)
  return target


def _make(child, model, folder, target) -> None:
  child.ask(
    'make',
    model=dataclasses.asdict(model),
    workdir=str(folder / 'workdir'),
    published=str(target),
  )


def fastest_experts(peer: asked.Child, command: str, **arguments) -> str:
  """Sets and returns the implementation with the shortest of three times."""
  seconds = {}
  for experts in EXPERTS[command]:
    peer.ask('use', experts=experts)
    # The first call warms up.
    tries = [peer.ask(command, **arguments)['seconds'] for _ in range(4)]
    seconds[experts] = min(tries[1:])
  best = min(seconds, key=lambda experts: seconds[experts])
  peer.ask('use', experts=best)
  tried = ', '.join(f'{name} {value:.3f}' for name, value in seconds.items())
  print(f'{command}, seconds by experts: {tried}', file=sys.stderr, flush=True)
  return best


def check_close(what: str, ours: list, peer: list) -> None:
  """Raises AssertionError if a difference exceeds 1e-4 of the largest value."""
  largest = max(abs(x) for x in peer)
  apart = max(abs(a - b) for a, b in zip(ours, peer, strict=True)) / largest
  if not apart < TOLERANCE:
    raise AssertionError(f'{what}: {apart} of the largest apart')


def training(
  name: str, oracle: str, folder: pathlib.Path, tokens: Tokens, found: Found
) -> str:
  """Adds the row of a model's training; returns the peer's experts."""
  size = Size()
  batch, length = size.train

  def step():
    return 'train_step', {'tokens': tokens.rows(batch, length + 1)}

  with pair_lib.started(oracle, folder) as pair:
    default = pair.children['peer'].ask('about')['experts']
    pair.both('start_training', **OPTIMIZER)
    command, arguments = step()
    losses = pair.both(command, **arguments)
    check_close('loss', [losses['ours']['loss']], [losses['peer']['loss']])
  with pair_lib.started(oracle, folder) as pair:
    pair.both('start_training', **OPTIMIZER)
    peer = pair.children['peer']
    experts = fastest_experts(peer, command, **arguments)
    for _ in range(2):  # Compiles, warms up.
      pair.children['ours'].ask(command, **arguments)
    samples = pair.rounds(
      batch * length * size.steps,
      lambda: [step() for _ in range(size.steps)],
      _ROUNDS.value,
    )
    command, arguments = step()
    last = pair.children['ours'].ask(command, **arguments)
    found.add(
      samples.row(name),
      f'{samples.note()}; {size.steps} steps a round; their experts {experts}, '
      f'by default {default}; our largest load over the mean at the end '
      f'{1 + last["max_violation"]:.2f}',
    )
  return experts


def inference(
  oracle: str, folder: pathlib.Path, tokens: Tokens, found: Found
) -> None:
  """Adds the rows of prefill and decoding, of model a."""
  size = Size()
  with pair_lib.started(oracle, folder) as pair:
    peer = pair.children['peer']
    prompts = {'tokens': tokens.rows(*size.prefill)}
    answers = pair.both('prefill', **prompts)
    for rows in zip(
      *(answer['logits'] for answer in answers.values()), strict=True
    ):
      check_close('logits', *rows)
    batch, length = size.prefill
    tasks: dict[str, tuple[int, str, dict[str, Any]]] = {
      'prefill': (batch * length, 'prefill', prompts)
    }
    for batch in size.batches:
      arguments = {
        'tokens': tokens.rows(batch, size.prompt),
        'count': size.new_tokens,
      }
      tasks[f'decode_b{batch}'] = batch * size.new_tokens, 'decode', arguments
    for name, (count, command, arguments) in tasks.items():
      experts = fastest_experts(peer, command, **arguments)
      answers = pair.both(command, **arguments)
      asks = [(command, arguments)]
      samples = pair.rounds(count, lambda asks=asks: asks, _ROUNDS.value)
      note = f'{samples.note()}; their experts {experts}'
      if command == 'decode':
        note += f'; {_same_tokens(answers)} tokens the same'
      found.add(samples.row(name), note)
    cache_bytes(pair, found)


def _same_tokens(answers: dict[str, Any]) -> str:
  """How many greedy tokens agree; after a near-tie the texts differ."""
  pairs = [
    one == other
    for rows in zip(*(x['tokens'] for x in answers.values()), strict=True)
    for one, other in zip(*rows, strict=True)
  ]
  return f'{sum(pairs)} of {len(pairs)}'


def _cached_values(model: ModelConfig) -> dict[str, int]:
  """Values per token of two ways to cache, from the published config."""
  config = published_config(model, 'bfloat16', True, False)
  rope = config['qk_rope_head_dim']
  heads = config['num_attention_heads']
  widths = {
    'latents': config['kv_lora_rank'] + rope,
    'whole heads': heads
    * (config['qk_nope_head_dim'] + rope + config['v_head_dim']),
  }
  return {k: v * config['num_hidden_layers'] for k, v in widths.items()}


def cache_bytes(pair: Pair, found: Found) -> None:
  """Adds the row of V3's cache; the peer's live cache shows what it holds."""
  live = pair.children['peer'].ask('cache_values', length=64)['values']
  ways = {k for k, v in _cached_values(model_a()).items() if v == live}
  if len(ways) != 1:
    raise AssertionError(f'transformers caches {live} values per token')
  way = ways.pop()
  full = {k: 2 * v for k, v in _cached_values(v3_671b()).items()}
  ours = pair.children['ours'].ask('cache_bytes')['bytes']
  found.add(
    scoreboard.compare('cache_bytes', ours, full[way]),
    f'this version of transformers caches {way}, as its live cache of model a '
    f'shows; whole heads would be {full["whole heads"]}',
  )


def train_memory(
  oracle: str,
  folder: pathlib.Path,
  tokens: Tokens,
  experts: str,
  found: Found,
) -> None:
  """Adds the row of memory, from processes that only load and train."""
  batch, length = Size().train
  peaks = {'ours': [], 'peer': []}
  for _ in range(MEMORY_PROCESSES):
    for side in peaks:
      is_ours = side == 'ours'
      with (
        pair_lib.load_ours(folder)
        if is_ours
        else pair_lib.load_peer(oracle, folder) as child
      ):
        if side == 'peer':
          child.ask('use', experts=experts)
        child.ask('start_training', **OPTIMIZER)
        for _ in range(MEMORY_STEPS):
          child.ask('train_step', tokens=tokens.rows(batch, length + 1))
        peaks[side].append(child.ask('peak')['bytes'] / 1e6)
  found.add(
    scoreboard.compare('train_memory', *map(statistics.median, peaks.values())),
    f'model a, {MEMORY_PROCESSES} processes each, {MEMORY_STEPS} steps, with '
    f'code and compiler; their experts {experts}',
  )


def smoke(folder: pathlib.Path) -> None:
  """Asks our side every command once, on a tiny model."""
  model = smallest()
  tokens = Tokens(model.vocab_size)
  published = folder / 'published'
  with pair_lib.start_ours() as ours:
    _make(ours, model, folder, published)
    ours.ask('load', folder=str(published))
    ours.ask('prefill', tokens=tokens.rows(2, 16))
    ours.ask('decode', tokens=tokens.rows(2, 16), count=4)
    print(ours.ask('cache_bytes'))
    ours.ask('start_training', **OPTIMIZER)
    print(ours.ask('train_step', tokens=tokens.rows(2, 17)))
    print(ours.ask('peak'))


def measure(
  folders: dict[str, pathlib.Path], tokens: Tokens, found: Found
) -> None:
  """Adds the rows that --parts names."""
  oracle, parts = _ORACLE.value, _PARTS.value
  experts = EXPERTS['train_step'][0]
  if 'inference' in parts:
    inference(oracle, folders['a'], tokens, found)
  if 'training' in parts:
    training('train_step_b', oracle, folders['b'], tokens, found)
    experts = training('train_step_a', oracle, folders['a'], tokens, found)
  if 'memory' in parts:
    train_memory(oracle, folders['a'], tokens, experts, found)


def run(stem: pathlib.Path, is_full: bool) -> None:
  """Measures --parts, or only asks our side if the run isn't full."""
  with tempfile.TemporaryDirectory() as name:
    work = pathlib.Path(name)
    if not is_full:
      smoke(work)
      return
    if not _ORACLE.value:
      raise app.UsageError('--oracle= is missing; `make bench` gives it')
    circumstances = scoreboard.Circumstances()
    folders = {
      'a': export(model_a(), work / 'a'),
      'b': export(model_b(), work / 'b'),
    }
    with pair_lib.started(_ORACLE.value, folders['a']) as pair:
      about = pair.both('about')
    versions = about['ours']['versions'] | about['peer']['versions']
    found, tokens = Found(), Tokens(model_a().vocab_size)
    try:
      measure(folders, tokens, found)
    finally:  # What was measured before something failed stays measured.
      where = circumstances.cells(versions)
      scoreboard.add_and_publish(stem, found.rows, where, found.notes)


def main(argv: Sequence[str]) -> None:
  script.run_as_asked(argv, run, full=True, smoke=False)


if __name__ == '__main__':
  app.run(main)
