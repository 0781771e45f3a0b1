"""The process in which fuzz.py spoils files and has them read.

fuzz_child.py FOLDER; cases come on stdin, verdicts go to stdout. Descriptors 1
and 2 are a file meanwhile, so that what threads and C++ print counts too.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import shutil
import sys
import time
import traceback

from absl import logging
import mutations
import numpy as np

import published
from seekax.cli import main
from seekax.configuration.config import to_dict
from seekax.configuration.errors import InputError
from seekax.data import formats, tokenizer_files, tokenizer_training
from seekax.files import one_line
from seekax.storage import checkpoint, manifest, rows, token_file
from seekax.storage import open as open_lib
from seekax.storage import workdir as workdir_lib
from seekax.training import state
import short_runs

SECONDS = 10.0  # For one case, on a machine that others use too.
MEMORY = 1 << 30  # That a case may take, in bytes.
_STEP = 4


@dataclasses.dataclass(frozen=True)
class Kind:
  """A file to spoil, and what then reads it.

  Attributes:
    spoil: (folder of good files, folder to spoil, draw) spoils a file.
    read: reads it; returns an exit code, or raises InputError.
  """

  spoil: Callable[[pathlib.Path, random.Random], None]
  read: Callable[[pathlib.Path], int]


# --- Good files. --------------------------------------------------------------


def _make(root: pathlib.Path) -> None:
  """Every good file, once."""
  made = published.tensors(published.SMALL, 'mixed')
  fields = published.fields(published.SMALL, made)
  published.write_folder(root / 'single', fields, made)
  published.write_folder(root / 'shards', fields, made, 3)
  _make_run(root / 'run')
  text = ''.join(
    json.dumps({'text': f'line {n}', 'n': n}) + '\n' for n in range(20)
  )
  (root / 'text').mkdir()
  (root / 'text' / 'a.jsonl').write_text(text)
  np.save(root / 'text' / 'ids.npy', np.arange(24).reshape(2, 12))
  made = tokenizer_training.train(['def f(x): return x\n' * 9], 300)
  made.save(root / 'single' / 'tokenizer.json')


def _make_run(folder: pathlib.Path) -> None:
  """A workdir with a state of zeros: nothing is compiled."""
  import jax

  folder.mkdir()
  config = short_runs.small_config(folder)
  workdir_lib.write_run(folder, {'config': to_dict(config), 'overrides': {}})
  shapes = state.to_parts(state.abstract_state(config))
  parts = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  checkpoint.save(
    folder / workdir_lib.CHECKPOINTS, _STEP, parts, {'data': {'at': [1]}}
  )
  lines = [{'kind': 'train', 'step': n, 'loss': 1.0} for n in range(20)]
  (folder / workdir_lib.METRICS).write_text(
    ''.join(json.dumps(line) + '\n' for line in lines)
  )


# --- Ways to spoil and to read them. ------------------------------------------


def _spoil(path: pathlib.Path, draw: random.Random) -> None:
  """As JSON where it is some and the draw wants it, else as bytes."""
  data = path.read_bytes()
  if draw.random() < 0.7:
    with contextlib.suppress(ValueError):
      path.write_bytes(mutations.spoil_json(data, draw))
      return
  path.write_bytes(mutations.spoil_bytes(data, draw))


def _in_place(name: str):
  def spoil(folder: pathlib.Path, draw: random.Random) -> None:
    if draw.random() < 0.04:
      _replace(folder / name, draw)
    else:
      _spoil(folder / name, draw)

  return spoil


def _replace(path: pathlib.Path, draw: random.Random) -> None:
  """Something that is no file takes its place."""
  path.unlink()
  match draw.randrange(5):
    case 0:
      path.mkdir()
    case 1:
      os.mkfifo(path)
    case 2:
      path.symlink_to(path.name)
    case 3:
      path.symlink_to('/dev/zero')
    case 4:
      with open(path, 'wb') as file:
        file.truncate(40 << 30)


def _spoil_header(folder: pathlib.Path, draw: random.Random) -> None:
  path = folder / 'single' / 'model.safetensors'
  data = path.read_bytes()
  end = 8 + int.from_bytes(data[:8], 'little')
  match draw.randrange(4):
    case 0:
      path.write_bytes(mutations.spoil_bytes(data, draw))
    case 1:
      header = mutations.spoil_bytes(data[8:end], draw)
      published.write_raw(path, header, data[end:])
    case _:
      header = mutations.spoil_json(data[8:end], draw)
      published.write_raw(path, header, data[end:])


def _spoil_rows(folder: pathlib.Path, name: str, draw: random.Random) -> None:
  path = folder / name
  lines = path.read_bytes().splitlines(keepends=True)
  number = draw.randrange(len(lines))
  if draw.random() < 0.3:
    _in_place(name)(folder, draw)
    return
  lines[number] = mutations.spoil_json(lines[number], draw) + b'\n'
  path.write_bytes(b''.join(lines))


def _spoil_state(folder: pathlib.Path, draw: random.Random) -> None:
  """A file of the checkpoint, and mostly the list of hashes with it."""
  steps = folder / 'run' / workdir_lib.CHECKPOINTS
  files = [p for p in sorted((steps / str(_STEP)).rglob('*')) if p.is_file()]
  _spoil(draw.choice(files), draw)
  if draw.random() < 0.8:
    proof = checkpoint.manifest_path(steps, _STEP)
    manifest.write_manifest(steps / str(_STEP), proof)


def _inspect(name: str, *more: str):
  def read(folder: pathlib.Path) -> int:
    out = folder / 'out.json'
    words = ['inspect', '--verify', f'--json={out}', str(folder / name)]
    return main.main([*words, *more])

  return read


def _read_state(folder: pathlib.Path) -> int:
  run = folder / 'run'
  code = main.main(['inspect', '--verify', str(run)])
  if code:
    return code
  steps = run / workdir_lib.CHECKPOINTS
  checkpoint.read_progress(steps, _STEP)
  return 0


def _read_weights(folder: pathlib.Path) -> int:
  """Looks, converts and loads."""
  source = folder / 'single'
  code = _inspect('single')(folder)
  words = [f'--source={source}', f'--target={folder / "target"}']
  return code or main.main(['convert', *words]) or _load(source)


def _load(source: pathlib.Path) -> int:
  open_lib.open_checkpoint(source)
  return 0


def _read_tokenizer(folder: pathlib.Path) -> int:
  found = tokenizer_files.load_folder(folder / 'single')
  found.decode(found.encode('def f(x): é\n'))
  return _inspect('single')(folder)


def _read_text(folder: pathlib.Path) -> int:
  list(formats.read_file(folder / 'text' / 'a.jsonl', 'a'))
  return 0


def _read_ids(folder: pathlib.Path) -> int:
  token_file.read_token_ids(folder / 'text' / 'ids.npy', '--tokens')
  return 0


def _read_rows(folder: pathlib.Path) -> int:
  rows.read_rows(folder / 'run' / workdir_lib.METRICS)
  return 0


_TOKENIZER = 'single/tokenizer.json'
KINDS = {
  'header': Kind(_spoil_header, _read_weights),
  'config': Kind(_in_place('single/config.json'), _read_weights),
  'index': Kind(_in_place(f'shards/{published.INDEX}'), _inspect('shards')),
  'tokenizer': Kind(_in_place(_TOKENIZER), _read_tokenizer),
  'ids': Kind(_in_place('text/ids.npy'), _read_ids),
  'text': Kind(lambda f, d: _spoil_rows(f, 'text/a.jsonl', d), _read_text),
  'rows': Kind(lambda f, d: _spoil_rows(f, 'run/metrics.jsonl', d), _read_rows),
  'run': Kind(_in_place('run/run.json'), _read_state),
  'state': Kind(_spoil_state, _read_state),
  'manifest': Kind(_in_place(f'run/checkpoints/{_STEP}.sha256'), _read_state),
}
Case = tuple[str, int]


# --- The child. ---------------------------------------------------------------


def _run_case(root: pathlib.Path, case: Case) -> str:
  """Spoils and reads; returns what is wrong with the outcome, '' if nothing."""
  name, number = case
  folder, kind = root / 'case', KINDS[name]
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(root / 'good', folder, symlinks=True)
  with open(root / 'said', 'w+b') as said:
    kept = [os.dup(number) for number in (1, 2)]
    for number_ in (1, 2):
      os.dup2(said.fileno(), number_)
    start, before = time.monotonic(), _memory()
    try:
      kind.spoil(folder, random.Random(f'{name}:{number}'))
      code = _read(kind, folder)
    except BaseException:  # Also a panic of Rust.
      code = -1
      traceback.print_exc()
    seconds, grown = time.monotonic() - start, _memory() - before
    sys.stdout.flush()
    sys.stderr.flush()
    for old, number_ in zip(kept, (1, 2), strict=True):
      os.dup2(old, number_)
      os.close(old)
    said.seek(0)
    text = said.read().decode('utf-8', 'replace')
  return verdict(code, text, seconds, grown)


def _read(kind: Kind, folder: pathlib.Path) -> int:
  """Reads as `main` calls a command."""
  try:
    return kind.read(folder)
  except InputError as error:
    print(f'seekax: {one_line(str(error))}', file=sys.stderr)
    return main.BAD_INPUT


def _memory() -> int:
  """The most that was taken so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def verdict(code: int, text: str, seconds: float, grown: int) -> str:
  """What is wrong with an outcome, '' if nothing."""
  lines = text.splitlines() or ['']
  last = next((x for x in reversed(lines) if x.startswith('seekax: ')), '')
  strange = re.search(r'[^\n -~\u00a0-\uffff]', text)
  for wrong, words in (
    (code not in (0, 2, 3), f'exit {code}'),
    ('Traceback' in text, 'a traceback'),
    (strange is not None, f'{strange and strange[0]!r} is printed'),
    (code and not last, 'no line that says why'),
    (len(last) > 500, f'a line of {len(last)} characters'),
    (max(map(len, lines)) > 5000, 'a long line before'),
    (seconds > SECONDS, f'{seconds:.1f} s'),
    (grown > MEMORY, f'{grown >> 20} MiB'),
  ):
    if wrong:
      return f'{words}: {text[-1500:]}'
  return ''


def serve(root: pathlib.Path) -> None:
  """Runs the cases that stdin names; a line of JSON for each."""
  logging.set_verbosity(logging.WARNING)
  if not (root / 'good').exists():
    (root / 'good').mkdir()
    _make(root / 'good')
  for line in sys.stdin:
    name, number = json.loads(line)
    wrong = _run_case(root, (name, number))
    print(json.dumps(wrong), flush=True)


if __name__ == '__main__':
  serve(pathlib.Path(sys.argv[1]))
