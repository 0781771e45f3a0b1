"""Keeps compiled programs on disk, so that the next start needn't compile.

JAX's key of an entry contains program, versions, options and accelerator. For a
CPU it lacks what the machine code depends on, the kind of CPU and the number of
threads that the work was divided for; here these choose the folder. Entries are
code that will be run, so their folder must belong to the user alone.
"""

from collections.abc import Callable
import hashlib
import os
import pathlib
import shutil

import jax

from seekax.machine import compiling

AUTO = 'auto'
# Maximum size; the oldest entries beyond it are removed. An entry for a model
# on a laptop takes less than a megabyte, one for a GPU about ten.
_MAX_BYTES = 4 << 30
# JAX keeps two files: a program, and the time when it was last used.
_ENTRIES = ('-cache', '-atime')
# With less free disk space than this nothing is kept; the run itself needs it.
_LEAST_FREE_BYTES = 1 << 30

# The fields of /proc/cpuinfo that decide which machine code runs and is chosen,
# on x86 and then on Arm.
_DECISIVE = ('vendor_id', 'cpu family', 'model', 'model name', 'stepping')
_DECISIVE += ('flags', 'Features', 'CPU implementer', 'CPU architecture')
_DECISIVE += ('CPU variant', 'CPU part', 'CPU revision')


def switch_on(setting: str, say: Callable[[str], None]) -> None:
  """Lets JAX keep what it compiles; call it before anything is compiled.

  A folder that was set for JAX itself (JAX_COMPILATION_CACHE_DIR) is kept. If a
  folder can't be used, the run goes on without a cache and says so in a line; a
  damaged entry is compiled again by JAX, with a warning.

  Args:
    setting: 'auto' for $XDG_CACHE_HOME/seekax/xla, by default in ~/.cache; a
      folder; or '' for none.
    say: prints a line.
  """
  if not setting or compiling.setting('jax_compilation_cache_dir'):
    return
  kind = _kind_of_device()
  if not kind:
    return
  try:
    folder = _base(setting) / kind
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    problem = _problem(folder)
    if not problem:
      _remove_oldest(folder)
  except (OSError, RuntimeError) as error:
    folder, problem = None, str(error)
  if problem:
    say(f'no compilation cache: {problem} (train.compilation_cache)')
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))


def _base(setting: str) -> pathlib.Path:
  if setting != AUTO:
    return pathlib.Path(setting).expanduser()
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(cache).expanduser() / 'seekax' / 'xla'


def _kind_of_device() -> str:
  """Name of the folder for this machine; '' if the CPU can't be identified."""
  platform = jax.default_backend()
  if platform != 'cpu':
    return platform
  try:
    cpuinfo = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8')
    threads = len(os.sched_getaffinity(0))
  except (OSError, AttributeError):
    return ''
  return f'cpu-{_fingerprint(cpuinfo, threads)}'


def _fingerprint(cpuinfo: str, threads: int) -> str:
  """Hash of the first processor's fields and the number of usable threads."""
  first = cpuinfo.split('\n\n', maxsplit=1)[0]
  lines = [line.partition(':') for line in first.splitlines()]
  kind = [
    f'{k.strip()}:{v.strip()}' for k, _, v in lines if k.strip() in _DECISIVE
  ]
  text = '\n'.join([*kind, f'threads:{threads}'])
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _problem(folder: pathlib.Path) -> str:
  """Returns why a folder can't be used, '' if it can.

  Raises:
    OSError: it can't be written.
  """
  status = folder.stat()
  if status.st_uid != os.getuid() or status.st_mode & 0o022:
    return f'others may write {folder}, and its entries are run as code'
  if shutil.disk_usage(folder).free < _LEAST_FREE_BYTES:
    return f'the disk of {folder} is nearly full'
  probe = folder / f'.probe-{os.getpid()}'
  probe.touch()
  probe.unlink()
  return ''


def _remove_oldest(folder: pathlib.Path) -> None:
  """Limits the size of the folder; another run may be doing the same.

  Only JAX's files count, because a folder that the user named may hold others.
  """
  entries = []
  for path in folder.iterdir():
    if not path.name.endswith(_ENTRIES):
      continue
    try:
      status = path.stat()
    except FileNotFoundError:
      continue
    entries.append((status.st_mtime, status.st_size, path))
  total = sum(size for _, size, _ in entries)
  for _, size, path in sorted(entries):
    if total <= _MAX_BYTES:
      break
    path.unlink(missing_ok=True)
    total -= size
