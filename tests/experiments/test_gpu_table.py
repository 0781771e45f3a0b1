"""Tables whose rows fail one by one, and traces read."""

import gzip
import json
import pathlib
import sys
import tempfile

from absl.testing import absltest
import numpy as np

sys.path.append(
  str(pathlib.Path(__file__).resolve().parents[2] / 'experiments/benchmarks')
)
import gpu_table
from gpu_table import Case, Section


def _fails():
  raise ExceptionGroup('all', [ValueError('no | kernel\nand more')])


def _section(*cases):
  return Section('name', 'Title', 'A note.', ('what',), ('ms', 'GB/s'), cases)


class TableTest(absltest.TestCase):
  def test_a_failure_is_said_and_the_others_are_measured(self):
    section = _section(
      Case(('bad',), _fails),
      Case(('good',), lambda: {'ms': '3', 'GB/s': '4'}),
    )
    found = gpu_table.measure(section, lambda line: None)
    text = gpu_table.markdown(section, found)
    self.assertIn('| bad | failed: ValueError: no / kernel |  |', text)
    self.assertIn('| good | 3 | 4 |', text)

  def test_what_was_not_measured_says_so(self):
    section = _section(Case(('row',), dict))
    rows = gpu_table.markdown(section, {})
    self.assertIn('| row | not measured | not measured |', rows)
    self.assertEqual(rows, gpu_table.markdown(section, {('row',): {}}))

  def test_nan_and_distance_fail_the_check(self):
    for wrong in ([1.0, np.nan], [1.0, 2.1]):
      with self.assertRaises(AssertionError):
        gpu_table.check_close('x', wrong, [1.0, 2.0], 0.02)
    gpu_table.check_close('x', [1.0, 2.01], [1.0, 2.0], 0.02)


class TraceTest(absltest.TestCase):
  def test_kernels_of_device_streams_add_up(self):
    def name(kind, pid, tid, text):
      args = {'name': text}
      return dict(ph='M', name=kind, pid=pid, tid=tid, args=args)

    def kernel(pid, tid, text, microseconds):
      return dict(ph='X', name=text, pid=pid, tid=tid, dur=microseconds, ts=0)

    events = [
      name('process_name', 1, 0, '/device:GPU:0'),
      name('process_name', 2, 0, '/host:CPU'),
      name('thread_name', 1, 5, 'Stream #20(Compute)'),
      name('thread_name', 1, 6, 'XLA Modules'),
      name('thread_name', 2, 5, 'Stream of the host'),
      kernel(1, 5, 'small', 500),
      kernel(1, 5, 'large', 2000),
      kernel(1, 5, 'small', 700),
      kernel(1, 6, 'jit_step', 9000),
      kernel(2, 5, 'host', 9000),
    ]
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'deep' / 'perfetto_trace.json.gz'
      path.parent.mkdir()
      path.write_bytes(
        gzip.compress(json.dumps({'traceEvents': events}).encode())
      )
      found = gpu_table.kernel_totals(pathlib.Path(folder))
    self.assertEqual(list(found.items()), [('large', 2.0), ('small', 1.2)])


if __name__ == '__main__':
  absltest.main()
