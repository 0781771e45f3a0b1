"""A trained model end to end: exported, continued by transformers, imported."""

from collections.abc import Iterator
import os
import pathlib
import shlex
import subprocess
import sys

import against_models
import asking
import numpy as np
from table import Row

from seekax.storage import names
from seekax.storage import workdir as workdir_lib
from seekax.storage.open import open_checkpoint, Opened
from seekax.storage.rows import read_rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Enough that the text isn't one token over and over.
TRAIN = (
  '--config=tiny',
  '--config.train.steps=300',
  '--config.optim.learning_rate=0.01',
  '--config.eval.every=300',
  '--config.eval.sample_every=300',
  '--config.train.checkpoint_every=300',
)
TEXT = ROOT / 'LICENSE'
PROMPT, NEW_TOKENS = 'the Work', 64
MORE_STEPS = 2


def seekax(work: pathlib.Path, *args: str) -> str:
  """The command line in a process of its own; returns its stdout.

  Args:
    work: compiled programs are kept there.
    *args: command and flags.

  Raises:
    Unable: it failed; the message has its last line.
  """
  done = subprocess.run(
    [sys.executable, '-m', 'seekax', *args],
    capture_output=True,
    encoding='utf-8',
    check=False,
    cwd=ROOT,
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(work / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
    },
  )
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['no word'])[-1]
    raise asking.Unable(f'seekax {shlex.join(args)}: {last}')
  return done.stdout


def compare(
  oracle: asking.Oracle, work: pathlib.Path, run: pathlib.Path | None = None
) -> Iterator[Row]:
  """Trains, or takes a run, and follows its weights all the way round."""
  if run is None:
    run, train = work / 'trained', _train_flags(work)
    seekax(work, 'train', *train, f'--workdir={run}')
  else:
    run, train = run.resolve(), _flags_of(run)
  opened = open_checkpoint(run)
  exported = work / 'trained_exported'
  flags = (f'--source={run}', f'--target={exported}')
  seekax(work, 'convert', *flags, '--format=huggingface')

  name = f'{run.name}, {opened.step} steps'
  tokens = _tokens(opened)
  ours, _ = against_models.logits(opened, tokens)
  flags = (f'--text={PROMPT}', f'--greedy={NEW_TOKENS}')
  answer = oracle.answer('trained', exported, *flags, tokens=tokens)
  layer = f'model.layers.{opened.config.model.num_layers}.'
  changed = _changed(opened, exported) + answer.names(allowed=layer)
  yield Row(
    'exported from training: tensors, names that differ',
    name,
    len(changed),
    0,
    ', '.join(changed[:1]),
  )
  yield Row(
    'logits', name, asking.distance(ours, answer.logits), against_models.LOGITS
  )
  yield _continued(name, run, work, answer.about['text'])
  yield _trained_on(name, run, exported, work, train)


def _train_flags(work: pathlib.Path) -> tuple[str, ...]:
  """Of a short run on a text, a few of its paragraphs a document."""
  folder = work / 'text'
  folder.mkdir()
  paragraphs = TEXT.read_text(encoding='utf-8').strip().split('\n\n')
  for first in range(0, len(paragraphs), 4):
    part = '\n\n'.join(paragraphs[first : first + 4])
    path = folder / f'{first:03d}.txt'
    path.write_text(part + '\n', encoding='utf-8')
  return (*TRAIN, f'--config.data.source={folder}')


def _flags_of(run: pathlib.Path) -> tuple[str, ...]:
  """What a run was started with."""
  command = workdir_lib.read_run(run)['command']
  words = shlex.split(command)[2:]
  return tuple(w for w in words if not w.startswith('--workdir'))


def _tokens(opened: Opened) -> np.ndarray:
  model = opened.config.model
  shape = (2, min(model.context_length, 128))
  draw = np.random.default_rng(0)
  return draw.integers(model.vocab_size, size=shape, dtype=np.int32)


def _changed(opened: Opened, exported: pathlib.Path) -> list[str]:
  """Tensors that aren't the training state's, bit by bit."""
  published = names.to_published(opened.config.model, opened.weights.tree)
  ours = {
    name: ('F32', value.shape, value.tobytes()) for name, value in published
  }
  return asking.differing(ours, asking.stored(exported))


def _continued(
  name: str, run: pathlib.Path, work: pathlib.Path, theirs: dict
) -> Row:
  """`seekax generate` on the run, transformers on what was exported."""
  ours = seekax(
    work,
    'generate',
    f'--checkpoint={run}',
    f'--prompt={PROMPT}',
    f'--max_new_tokens={NEW_TOKENS}',
    '--temperature=0',
  )
  ids = theirs['continuation_ids']
  return Row(
    'texts continued greedily that differ',
    name,
    int(ours != theirs['continuation']),
    0,
    f'{len(ids)} tokens of {len(set(ids))} kinds, won by '
    f'{theirs["margin"]:.0e} or more',
  )


def _trained_on(
  name: str,
  run: pathlib.Path,
  exported: pathlib.Path,
  work: pathlib.Path,
  train: tuple[str, ...],
) -> Row:
  """Two steps from what was exported, and from what was not."""
  imported = work / 'trained_imported'
  seekax(work, 'convert', f'--source={exported}', f'--target={imported}')
  losses = []
  for origin in (run, imported):
    workdir = work / f'more_from_{origin.name}'
    seekax(
      work,
      'train',
      *train,
      f'--workdir={workdir}',
      f'--config.train.init_from={origin}',
      f'--config.train.steps={MORE_STEPS}',
      '--config.train.log_every=1',
      '--config.optim.warmup_steps=0',
      f'--config.optim.constant_tokens={10**12}',
      '--config.eval.max_bytes=4096',
    )
    rows = read_rows(workdir / 'metrics.jsonl')
    losses.append([row['loss'] for row in rows if row['kind'] == 'train'])
  one, other = np.array(losses)
  return Row(
    'trained on after export and import: losses that differ',
    name,
    int((one != other).sum()),
    0,
    f'{len(one)} steps: {", ".join(f"{loss:.4f}" for loss in one)}',
  )
