"""pytest runs absltest classes: flags parsed, JAX on the CPU."""

import os
import tempfile

from absl import flags
from absl.testing import absltest

# Before JAX is imported anywhere.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

# absltest would parse the command line of its own main().
flags.FLAGS(['pytest'])
absltest.FLAGS.test_tmpdir = tempfile.mkdtemp(prefix='seekax-tests-')
