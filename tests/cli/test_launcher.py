"""Who a run of several processes is, and what is said if somebody is missing."""

import contextlib
import io
import os
import socket
import subprocess
import sys

from absl.testing import absltest, parameterized

from seekax.cli.launcher import described, Processes
from seekax.configuration.errors import InputError


def free_port() -> int:
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


class DescribedTest(parameterized.TestCase):
  @parameterized.parameters(
    (('', 0, -1), {}, None),
    (('a:1', 2, 0), {}, Processes('a:1', 2, 0)),
    (('a:1', 1, 0), {}, None),
    (
      ('', 0, -1),
      {'SLURM_NTASKS': '8', 'SLURM_STEP_NODELIST': 'n[1-8]'},
      Processes(),
    ),
    # An allocation's shell or batch script, whose tasks srun didn't start.
    (('', 0, -1), {'SLURM_NTASKS': '8', 'SLURM_PROCID': '0'}, None),
    (('', 1, -1), {'SLURM_NTASKS': '8', 'SLURM_STEP_NODELIST': 'n1'}, None),
    (('', 0, -1), {'SLURM_NTASKS': '1'}, None),
    (('', 0, -1), {'OMPI_COMM_WORLD_SIZE': '2'}, Processes()),
    (
      ('', 0, -1),
      {
        'SEEKAX_COORDINATOR': 'b:2',
        'SEEKAX_NUM_PROCESSES': '4',
        'SEEKAX_PROCESS_ID': '3',
        'SLURM_NTASKS': '8',
      },
      Processes('b:2', 4, 3),
    ),
    # Flags go before the environment.
    (('a:1', 2, 1), {'SEEKAX_PROCESS_ID': '0'}, Processes('a:1', 2, 1)),
  )
  def test_flags_then_environment(self, given, environment, expected):
    found = described(*given, environment=environment)
    self.assertEqual(found, expected)

  def test_a_lone_process_in_an_allocation_says_so(self):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
      self.assertIsNone(described('', 0, -1, {'SLURM_NTASKS': '4'}))
    self.assertIn('it trains alone; srun seekax', said.getvalue())

  @parameterized.parameters(
    (('a:1', 0, -1), {}, 'give all three'),
    (('', 2, 0), {}, 'give all three'),
    (('a:1', 2, 2), {}, 'give all three'),
    (('a', 2, 1), {}, 'no host:port'),
    (('a:x', 2, 1), {}, 'no host:port'),
    ((':1', 2, 1), {}, 'no host:port'),
    (('a:99999', 2, 1), {}, 'a port from 1 to 65535'),
    (('', 0, -1), {'SEEKAX_NUM_PROCESSES': 'two'}, 'not a number'),
  )
  def test_half_of_it_is_refused(self, given, environment, message):
    with self.assertRaisesRegex(InputError, message):
      described(*given, environment=environment)


class MissingTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, 'not all of 2 processes came to .* this is process 0'),
    (1, 'can not be reached'),
  )
  def test_nobody_waits_for_ever(self, index, message):
    workdir = self.create_tempdir().full_path
    run = subprocess.run(
      [sys.executable, '-m', 'seekax', 'train', '--config=tiny']
      + [f'--workdir={workdir}', f'--coordinator=127.0.0.1:{free_port()}']
      + ['--num_processes=2', f'--process_id={index}', '--start_timeout=1'],
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(run.returncode, 2, run.stderr)
    self.assertRegex(run.stderr, rf'^seekax: .*{message}')
    self.assertIn(' within 1 s (--start_timeout)', run.stderr)
    self.assertEqual(run.stderr.count('\n'), 1)
    self.assertEmpty(os.listdir(workdir))


if __name__ == '__main__':
  absltest.main()
