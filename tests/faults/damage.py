"""Files that change, shrink or disappear, and disks without room."""

import contextlib
import os
import pathlib
import random
import shutil
import struct
import subprocess
from typing import Any

from commands import check
from harness import (
  Bench,
  check_refused_here,
  Fault,
  flip_bit,
  NotRunError,
  state_hash,
  steps_of,
)
from tensorboardX.proto import event_pb2

from seekax.storage import checkpoint
from seekax.storage import workdir as workdir_lib

_FLIPS = 40


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  """All files of a checkpoint."""
  return sorted(p for p in folder.rglob('*') if p.is_file())


def _copy(bench: Bench, name: str = 'copy') -> pathlib.Path:
  """Of an unbroken run's workdir, with checkpoints 30 and 40."""
  workdir = bench.folder(name)
  shutil.copytree(bench.unbroken(), workdir, dirs_exist_ok=True)
  check(steps_of(workdir) == [30, 40], f'steps {steps_of(workdir)}')
  return workdir


def flips(bench: Bench) -> str:
  """All files take their turn, the large ones most often."""
  workdir = _copy(bench)
  folder = workdir / workdir_lib.CHECKPOINTS
  files = [*_files(folder / '40'), folder / '40.sha256']
  files = [path for path in files if path.stat().st_size]
  sizes = [path.stat().st_size for path in files]
  draw, hit = random.Random(_FLIPS), set()
  for number in range(_FLIPS):
    # Every second one by size, the others by file.
    by_size = draw.choices(files, sizes)[0]
    path = by_size if number % 2 else files[number // 2 % len(files)]
    whole = path.read_bytes()
    flip_bit(path, draw)
    words = ('40.sha256',) if path.suffix == '.sha256' else (path.name,)
    for args in (['inspect', '--verify'], ['inspect', '--hash']):
      check_refused_here([*args, str(workdir)], *words)
    path.write_bytes(whole)
    hit.add(path.name)
  check(state_hash(workdir) == state_hash(bench.unbroken()), 'not put back')
  return f'{_FLIPS} flips in {len(hit)} files: all refused, file named'


def flip_and_train(bench: Bench) -> str:
  """Through `train`: refused, then on from the step before."""
  workdir = _copy(bench)
  words = bench.train(workdir)
  largest = max(
    _files(workdir / workdir_lib.CHECKPOINTS / '40'),
    key=lambda path: path.stat().st_size,
  )
  flip_bit(largest, random.Random(1))
  bench.check_refused(words, largest.name, '--restore=previous')
  check(steps_of(workdir) == [30, 40], 'fell back without being asked')
  said = bench.finish([*words, '--restore=previous']).said()
  check('going on from step 30' in said, 'it does not say from where')
  bench.check_like_unbroken(workdir)
  return 'refused; --restore=previous says step 30, ends with the same hash'


def cut_or_deleted(bench: Bench) -> str:
  workdir = _copy(bench)
  files = _files(workdir / workdir_lib.CHECKPOINTS / '40')
  cases = 0
  for path in files:
    whole = path.read_bytes()
    kinds = [path.unlink]
    if whole:
      kinds.append(lambda p=path, w=whole: p.write_bytes(w[: len(w) // 2]))
    for damage in kinds:
      damage()
      for args in (['inspect', '--verify'], ['inspect', '--hash']):
        check_refused_here([*args, str(workdir)], path.name)
      path.write_bytes(whole)
      cases += 1
  return f'{cases} cases in {len(files)} files: all refused, file named'


def metadata_and_train(bench: Bench) -> str:
  """What `train` reads before it verifies must be named too."""
  workdir = _copy(bench)
  draw, tried, whole = random.Random(3), [], b''
  for path in _files(workdir / workdir_lib.CHECKPOINTS / '40'):
    if 'metadata' not in path.name.lower() or path.parent.name != '40':
      continue
    whole = path.read_bytes()
    flip_bit(path, draw)
    bench.check_refused(bench.train(workdir), path.name)
    path.write_bytes(whole)
    tried.append(path.name)
  where = whole.find(b'fingerprint')
  check(bool(tried) and where > 0, f'no progress in {tried}')
  path.write_bytes(whole.replace(b'fingerprint', b'fingerprins'))
  bench.check_refused(bench.train(workdir), path.name)
  return f'{", ".join(tried)}: refused, file named'


@contextlib.contextmanager
def _small_disk(bench: Bench, megabytes: int, options: str = ''):
  """A tmpfs of this size; NotRunError where mounting isn't allowed."""
  folder = bench.folder('disk')
  size = f'size={megabytes}m{options}'
  mount = ['mount', '-t', 'tmpfs', '-o', size, 'tmpfs', str(folder)]
  try:
    done = subprocess.run(mount, capture_output=True, check=False)
  except FileNotFoundError as error:
    raise NotRunError('there is no mount command') from error
  if done.returncode:
    raise NotRunError('mounting a tmpfs is not allowed')
  try:
    yield folder
  finally:
    subprocess.run(['umount', str(folder)], check=True)


def _remount(folder: pathlib.Path, option: str) -> None:
  subprocess.run(['mount', '-o', f'remount,{option}', str(folder)], check=True)


def no_room(bench: Bench) -> str:
  with _small_disk(bench, 6) as disk:
    words = bench.train(disk / 'run')
    line = bench.check_refused(words, 'MB left', 'make room')
    steps = steps_of(disk / 'run')
    check(len(steps) >= 1, 'no checkpoint fitted')
    checkpoint.verify(disk / 'run' / workdir_lib.CHECKPOINTS, steps[-1])
    _remount(disk, 'size=64m')
    bench.finish(words)
    bench.check_like_unbroken(disk / 'run')
  return f'exit 2 with step {steps[-1]} whole ("{line[:60]}..."); same hash'


def full_in_a_save(bench: Bench) -> str:
  with _small_disk(bench, 32) as disk:
    words = bench.train(disk / 'run')
    line = bench.check_refused(words, 'could not be saved', fault='full_disk:2')
    steps = steps_of(disk / 'run')
    check(steps == [10], f'proven: {steps}')
    checkpoint.verify(disk / 'run' / workdir_lib.CHECKPOINTS, 10)
    (disk / 'run' / 'ballast').unlink()
    bench.finish(words)
    bench.check_like_unbroken(disk / 'run')
  return f'exit 2, step 10 whole ("{line[-90:]}"); same hash'


def file_size_limit(bench: Bench) -> str:
  workdir = bench.folder('limited')
  words = bench.train(workdir)
  # Enough for all files but the arrays of a checkpoint.
  limit = 1 << 20
  prefix = ['prlimit', f'--fsize={limit}']
  if not shutil.which('prlimit'):
    raise NotRunError('there is no prlimit command')
  line = bench.check_refused(words, 'could not be saved', prefix=prefix)
  check(not steps_of(workdir), f'proven: {steps_of(workdir)}')
  bench.finish(words)
  bench.check_like_unbroken(workdir)
  return f'exit 2 ("{line[-90:]}"); then the same hash'


def read_only(bench: Bench) -> str:
  with _small_disk(bench, 16) as disk:
    _remount(disk, 'ro')
    line = bench.check_refused(bench.train(disk / 'run'), 'not writable')
    shown = line.replace(str(disk), '...')
  below = bench.root / 'left' / 'file00.py' / 'run'
  bench.check_refused(bench.train(below), 'not writable')
  return f'before anything is compiled: {shown}'


# protobuf makes the class, where no type checker sees it.
_EVENT: Any = vars(event_pb2)['Event']


def _events(path: pathlib.Path) -> list[Any]:
  """The whole records of a TensorBoard file, as a reader takes them."""
  data, events = path.read_bytes(), []
  while len(data) >= 16:
    (size,) = struct.unpack('<Q', data[:8])
    if len(data) < 16 + size:
      break
    events.append(_EVENT.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  return events


def board_cut_short(bench: Bench) -> str:
  workdir = bench.folder('board')
  words = bench.train(workdir)
  code, _ = bench.run(words, fault='kill_before_manifest:3')
  check(code == 137, f'exit {code}')
  board = workdir / workdir_lib.TENSORBOARD
  (first,) = board.iterdir()
  os.truncate(first, first.stat().st_size - 7)
  bench.finish(words)
  (second,) = set(board.iterdir()) - {first}
  shown: dict[int, str] = {}
  before = _events(first)
  after = _events(second)
  starts = [e.step for e in after if e.HasField('session_log')]
  check(starts == [21], f'the second file takes back steps from {starts}')
  for name, events in (('first', before), ('second', after)):
    for event in events:
      tags = [value.tag for value in event.summary.value]
      if 'train/loss' not in tags:
        continue
      if name == 'first' and event.step >= starts[0]:
        continue  # As TensorBoard drops them.
      check(event.step not in shown, f'step {event.step} twice')
      shown[event.step] = name
  check(sorted(shown) == list(range(1, 41)), f'steps {sorted(shown)}')
  return f'{len(before)} records read, a new file from step 21; each step once'


FAULTS = (
  Fault(
    'F9',
    '40 single-bit flips, in every file of a checkpoint and its manifest',
    'inspect --verify and --hash refuse, with the file named',
    flips,
    quick=True,
  ),
  Fault(
    'F11',
    'a bit flipped in the newest checkpoint',
    'train refuses; --restore=previous goes on, and says so',
    flip_and_train,
  ),
  Fault(
    'F10',
    'every file of a checkpoint cut in half, and deleted',
    'refused, with the file named',
    cut_or_deleted,
  ),
  Fault(
    'F9-meta',
    'a bit flipped in what train reads first (progress, fingerprint)',
    'refused, with the file named',
    metadata_and_train,
  ),
  Fault(
    'F7',
    'a disk with too little room for the second checkpoint',
    'one line, exit 2, the older step whole; goes on once there is room',
    no_room,
  ),
  Fault(
    'F8',
    'a disk that fills up while a checkpoint is written',
    'one line, exit 2, the older step whole; goes on once there is room',
    full_in_a_save,
  ),
  Fault(
    'F7-limit',
    'a limit on the size of files, met in a save',
    'one line, exit 2; goes on without the limit',
    file_size_limit,
  ),
  Fault(
    'F28',
    'a read-only workdir, and one below a file',
    'one line, exit 2, before anything is compiled',
    read_only,
  ),
  Fault(
    'F30',
    'a TensorBoard file cut short by a crash',
    'what is whole is read; a new file, no step twice',
    board_cut_short,
  ),
)
