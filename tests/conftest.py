"""pytest runs absltest classes: flags parsed, JAX on the CPU, one cache."""

import atexit
import gc
import os
import pathlib
import shutil
import signal
import tempfile

from absl import flags
from absl.testing import absltest
import pytest

# Linux gives a process 65,530 mappings of memory. A program compiled for the
# CPU keeps some forty until it is forgotten; XLA dies of a segmentation fault
# where it gets no more, as a worker did that had run most of the tests.
_MOST_MAPPINGS = 20_000

# Beginnings of the paths of the classes that are to begin first.
_LONG = (
  'training/test_bias_variants.py',
  'test_experiments_smoke.py',
  'parallel',
  'test_configs.py',
  'faults',
  'test_colabs.py',
  'dryrun',
  'cli',
  'training',
)

# Before JAX is imported anywhere, here and in the processes that tests start.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# What a test compiles runs a few times: a third of the time with these. With
# XLA_FLAGS= in the environment tests compile as runs do.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
  ' --xla_cpu_parallel_codegen_split_count=1',
)
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  # The first process of a test session makes it; commands share it.
  _CACHE = tempfile.mkdtemp(prefix='seekax-compiled-')
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

# Tracing makes objects by the million, few of them garbage: a tenth of the time.
gc.set_threshold(50_000, 20, 100)

# absltest would parse the command line of its own main().
flags.FLAGS(['pytest'])
absltest.FLAGS.test_tmpdir = tempfile.mkdtemp(prefix='seekax-tests-')
atexit.register(shutil.rmtree, absltest.FLAGS.test_tmpdir, ignore_errors=True)


# What a shell starts in the background ignores Ctrl-C, and so do its children.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure():
  """The cache is for commands: what tests compile they ask for once."""
  import jax

  jax.config.update('jax_enable_compilation_cache', False)


def pytest_collection_modifyitems(items):
  """What takes minutes first, or one worker would be left with it at the end."""
  root = pathlib.Path(__file__).parent

  def place(item) -> int:
    path = item.path.relative_to(root).as_posix()
    found = (i for i, start in enumerate(_LONG) if path.startswith(start))
    return next(found, len(_LONG))

  items.sort(key=place)


@pytest.fixture(scope='module', autouse=True)
def _forgets_programs():
  """JAX keeps every program that it compiled; between files they may go."""
  yield
  if _mappings() > _MOST_MAPPINGS:
    import jax

    jax.clear_caches()
    gc.collect()


def _mappings() -> int:
  """Of this process; 0 where there is no telling."""
  try:
    return pathlib.Path('/proc/self/maps').read_bytes().count(b'\n')
  except OSError:
    return 0
