import itertools

from absl.testing import absltest, parameterized

from seekax.planning import schedule_orders, schedules


def _mean_counts(schedule, stages, count):
  """Actions of each kind on a rank, averaged over ranks."""
  orders = schedule_orders.orders(schedule, stages, count)
  counts = dict.fromkeys(('F', 'B', 'I', 'W', 'FB'), 0.0)
  for action in itertools.chain(*orders):
    counts[action.kind] += 1 / len(orders)
  return counts


class OrdersTest(parameterized.TestCase):
  @parameterized.parameters(*schedule_orders.SCHEDULES)
  def test_counts_add_up_to_all_micro_batches(self, schedule):
    stages, count = 16, 120
    counts = _mean_counts(schedule, stages, count)
    # DualPipeV's ranks hold two stages, which all micro-batches pass.
    chunks = 2 * count if schedule == 'dualpipev' else count
    self.assertAlmostEqual(counts['F'] + counts['FB'], chunks)
    self.assertAlmostEqual(counts['B'] + counts['I'] + counts['FB'], chunks)
    self.assertAlmostEqual(counts['I'], counts['W'])

  @parameterized.parameters((4, 16), (8, 40), (16, 120))
  def test_counts_of_dualpipe_equal_its_order(self, stages, count):
    found = _mean_counts('dualpipe', stages, count)
    for kind, value in schedules.dual_counts(stages, count).items():
      self.assertAlmostEqual(value, found[kind])

  @parameterized.parameters(
    ('gpipe', 4, 8, 'is not one of'),
    ('dualpipe', 5, 20, 'even numbers'),
    ('dualpipe', 4, 9, 'even numbers'),
    ('dualpipe', 8, 14, 'at least 16'),
    ('dualpipev', 8, 14, 'at least 16'),
  )
  def test_what_cannot_run_is_refused(self, schedule, stages, count, words):
    with self.assertRaisesRegex(ValueError, words):
      schedule_orders.orders(schedule, stages, count)


if __name__ == '__main__':
  absltest.main()
