"""What doesn't belong together, and files that mean harm."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from bad_numbers import parts_of
from commands import check
from harness import (
  Bench,
  check_one_line,
  Fault,
  NotRunError,
  steps_of,
  write_source,
)

from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib

_ROOT = pathlib.Path(__file__).parents[2]


def _stopped(bench: Bench, *more: str) -> tuple[pathlib.Path, list[str]]:
  """A run that got to step 10, and its words."""
  workdir = bench.folder('stopped')
  words = bench.train(workdir, *more)
  bench.run(words, fault='kill_before_manifest:2')
  check(steps_of(workdir) == [10], f'saved {steps_of(workdir)}')
  return workdir, words


def other_run(bench: Bench) -> str:
  workdir, words = _stopped(bench)
  for key, value in (
    ('data.source', bench.root / 'left'),
    ('data.seed', 7),
    ('train.seed', 7),
    ('data.batch_size', 8),
    ('data.num_shards', 4),
    ('data.tokenizer', bench.unbroken() / workdir_lib.TOKENIZER),
    ('model.embed_dim', 32),
  ):
    bench.check_refused(
      [*words, f'--config.{key}={value}'], f'{key}: ', ' there, ', ' here'
    )
  bench.finish(words)
  bench.check_like_unbroken(workdir)
  return '7 keys: refused, each with both values; then the same hash'


def other_data(bench: Bench) -> str:
  left = bench.folder('source') / 'text'
  write_source(left, seed=5)
  workdir, words = _stopped(bench, f'--config.data.source={left}')
  before = (workdir / workdir_lib.RUN).read_bytes()
  path = left / 'file03.py'
  whole = path.read_text()
  path.write_text(whole.replace('return', 'yield ', 1))
  bench.check_refused(words, 'was trained on other data', 'not the same')
  path.write_text(whole + '# more')
  bench.check_refused(words, 'was trained on other data', '_bytes ', ' there, ')
  path.write_text(whole)
  tokenizer = workdir / workdir_lib.TOKENIZER
  content = tokenizer.read_text()
  merges = json.loads(content)
  merges['model']['merges'].pop()
  tokenizer.write_text(json.dumps(merges))
  bench.check_refused(words)
  tokenizer.write_text(content)
  check((workdir / workdir_lib.RUN).read_bytes() == before, 'run.json changed')
  bench.finish(words)
  return 'a changed document and a changed tokenizer.json: refused, run kept'


def missing_weight(bench: Bench) -> str:
  workdir = bench.folder('missing')
  shutil.copytree(bench.unbroken(), workdir, dirs_exist_ok=True)
  parts, progress = parts_of(workdir)
  folder = workdir / workdir_lib.CHECKPOINTS
  shutil.rmtree(folder)
  del parts['weights']['params']['final_norm']
  checkpoint.save(folder, 30, parts, progress)
  line = bench.check_refused(bench.train(workdir), 'final_norm')
  check(steps_of(workdir) == [30], 'something was saved')
  return line.replace(str(workdir), '...')[:160]


def two_runs(bench: Bench) -> str:
  workdir = bench.folder('shared')
  words = bench.train(workdir, '--config.train.steps=100000')
  first = bench.start(words)
  first.wait_until(lambda: first.step() >= 3)
  bench.check_refused(words, 'in use by another run')
  before = first.step()
  check(
    first.wait_until(lambda: first.step() > before), 'the first one stopped'
  )
  first.send(signal.SIGTERM)
  check(first.end() == 143, first.last_line())
  return 'the second is refused, the first goes on'


def _tokenized(bench: Bench) -> pathlib.Path:
  tokens = bench.folder('tokens') / 'right'
  bench.finish(
    ['tokenize', f'--source={bench.root / "right"}', f'--target={tokens}']
    + [f'--tokenizer={bench.unbroken() / workdir_lib.TOKENIZER}']
  )
  return tokens


def corrupt_record(bench: Bench) -> str:
  tokens, workdir = _tokenized(bench), bench.folder('corrupt')
  (shard,) = tokens.glob('*.array_record')
  data = bytearray(shard.read_bytes())
  # Amid the records; the file is padded to blocks of 64 KiB.
  used = [place for place, byte in enumerate(data[: 1 << 16]) if byte]
  data[used[len(used) // 2]] ^= 1
  shard.write_bytes(data)
  words = bench.train(workdir, f'--config.data.source={tokens}')
  line = bench.check_refused(words, shard.name, 'is corrupt', 'skip_corrupt')
  running = bench.finish([*words, '--config.data.skip_corrupt=True'])
  check('skipped' in running.said(), 'the skipped record is not mentioned')
  record = re.findall(r'record \d+', line)[0]
  return f'refused with shard and {record}; skipped and said so when asked'


def _workers(parent: int) -> list[int]:
  """Processes that multiprocessing started for one."""
  path = pathlib.Path(f'/proc/{parent}/task/{parent}/children')
  try:
    children = [int(word) for word in path.read_text().split()]
  except OSError:
    return []
  found = []
  for child in children:
    try:
      words = pathlib.Path(f'/proc/{child}/cmdline').read_bytes()
    except OSError:
      continue
    if b'spawn_main' in words:
      found.append(child)
  return found


def killed_worker(bench: Bench) -> str:
  if not pathlib.Path('/proc/self/task').is_dir():
    raise NotRunError('there is no /proc to find the workers in')
  source = bench.folder('many') / 'text'
  write_source(source, seed=9, documents=400)
  targets = [bench.folder('tokens') / name for name in ('shot', 'whole')]
  shot, whole = (
    ['tokenize', f'--source={source}', f'--target={target}', '--workers=2']
    + ['--shard_documents=2']
    + [f'--tokenizer={bench.unbroken() / workdir_lib.TOKENIZER}']
    for target in targets
  )
  running = bench.start(shot)
  running.wait_until(
    lambda: any(targets[0].parent.rglob('part-*.array_record')), every=0.001
  )
  workers = _workers(running.process.pid)
  check(bool(workers), f'no worker was met: {running.last_line()}')
  os.kill(workers[0], signal.SIGKILL)
  start = time.monotonic()
  code = running.end()
  seconds = time.monotonic() - start
  check(code == 2 and seconds < 10, f'exit {code} after {seconds:.1f} s')
  check_one_line(running.said(), running.last_line())
  for words in (shot, whole):
    bench.finish(words)
  ours, theirs = (
    {p.name: p.read_bytes() for p in target.iterdir()} for target in targets
  )
  differ = [
    name
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
  ]
  check(not differ, f'{differ[:3]} differ from those of an unbroken run')
  return f'exit 2 after {seconds:.1f} s; the same command: the same bytes'


def _tested(number: str, what: str, promise: str, *tests: str) -> Fault:
  """What tests cover already is called, not written twice."""

  def run_tests(bench: Bench) -> str:
    run = subprocess.run(
      [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *tests],
      cwd=_ROOT,
      env=bench.env,
      capture_output=True,
      text=True,
      check=False,
    )
    last = (run.stdout.strip().splitlines() or [run.stderr])[-1]
    check(run.returncode == 0, last)
    return last

  return Fault(number, what, promise, run_tests, tests=tests)


def hostile_template(bench: Bench) -> str:
  workdir = bench.folder('template')
  shutil.copytree(bench.unbroken(), workdir, dirs_exist_ok=True)
  words = ['generate', f'--checkpoint={workdir}', '--prompt=x', '--chat']
  templates = (
    '{{ cycler.__init__.__globals__.os.environ }}',
    '{% for i in range(10 ** 9) %}{% endfor %}',
    "{{ 'a' * 10 ** 10 }}",
    "{% include '/etc/passwd' %}",
  )
  for template in templates:
    (workdir / 'chat_template.jinja').write_text(template)
    bench.check_refused([*words], 'chat template')
  return f'{len(templates)} templates: exit 2, one line each'


FAULTS = (
  Fault(
    'F14',
    'the same workdir with another source, seed, batch, tokenizer, shape',
    'refused with both values of each key',
    other_run,
  ),
  Fault(
    'F14-data',
    'a document, and the tokenizer, changed behind the same config',
    'refused; run.json stays as it was',
    other_data,
  ),
  Fault(
    'F12',
    'a proven checkpoint that lacks a weight',
    'refused, with its name',
    missing_weight,
  ),
  Fault('F27', 'two runs on one workdir', 'the second is refused', two_runs),
  Fault(
    'F21',
    'a corrupt record in a shard of tokens',
    'refused with shard and record; skipped and counted if asked',
    corrupt_record,
  ),
  Fault(
    'F16',
    'a worker of seekax tokenize is shot',
    'exit 2 within seconds; the same command ends with the same bytes',
    killed_worker,
  ),
  _tested(
    'B1',
    'hostile headers and names of safetensors files',
    'each is refused in one line',
    'tests/storage/test_safetensors_file.py::HostileHeaderTest',
  ),
  _tested(
    'B2',
    'hostile indices, pickles, bad config.json, tokenizers that do not fit',
    'exit 2 and one line, by every command that takes weights',
    'tests/cli/test_convert.py::RefusedTest',
  ),
  Fault(
    'B5',
    'hostile chat templates, through seekax generate --chat',
    'exit 2 and one line',
    hostile_template,
  ),
  _tested(
    'B15',
    'typos, wrong types, missing files, unknown presets',
    'exit 2 and one line that helps',
    'tests/cli/test_command_line.py::RefusalTest',
  ),
)
