"""pytest runs absltest classes: flags parsed, JAX on the CPU, one cache."""

import atexit
import os
import shutil
import tempfile

from absl import flags
from absl.testing import absltest

# Before JAX is imported anywhere, here and in the processes that tests start.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  # The first process of a test session makes it; workers and commands share it.
  _CACHE = tempfile.mkdtemp(prefix='seekax-compiled-')
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

# absltest would parse the command line of its own main().
flags.FLAGS(['pytest'])
absltest.FLAGS.test_tmpdir = tempfile.mkdtemp(prefix='seekax-tests-')
atexit.register(shutil.rmtree, absltest.FLAGS.test_tmpdir, ignore_errors=True)
