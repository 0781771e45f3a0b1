import itertools

from absl.testing import absltest, parameterized

from seekax.planning import schedule_orders, schedules
from seekax.planning.schedules import Costs

# F = I = W, where DeepSeek-V3's closed forms are exact, with and without gain
# from the overlap.
_EVEN = (Costs(1, 1, 1), Costs(1, 1, 1, pair=2.5), Costs(2, 2, 2, pair=4))
_SIZES = tuple(itertools.product((4, 8, 16), (2, 3)))


class ClosedFormTest(parameterized.TestCase):
  """Table 2 of DeepSeek-V3 (arXiv 2412.19437)."""

  @parameterized.product(
    schedule=schedule_orders.SCHEDULES, size=_SIZES, costs=_EVEN
  )
  def test_bubble_and_activations_where_exact(self, schedule, size, costs):
    stages, factor = size
    run = schedules.simulate(schedule, stages, factor * stages, costs)
    expected = schedules.closed_form_bubble(schedule, stages, costs)
    self.assertAlmostEqual(run.bubble, expected, places=9)
    self.assertEqual(
      run.peak_live_activations,
      schedules.closed_form_activations(schedule, stages),
    )

  @parameterized.product(
    schedule=('1f1b', 'zb1p'),
    size=_SIZES,
    costs=(Costs(2, 3, 1), Costs(1, 1.3, 0.8)),
  )
  def test_single_schedules_are_exact_for_uneven_chunks(
    self, schedule, size, costs
  ):
    stages, factor = size
    run = schedules.simulate(schedule, stages, factor * stages, costs)
    expected = schedules.closed_form_bubble(schedule, stages, costs)
    self.assertAlmostEqual(run.bubble, expected, places=9)

  def test_hand_count_of_a_pipeline_of_eight(self):
    # F=2, I=3, W=1, FB=4: the closed form says 15 and overstates.
    run = schedules.simulate('dualpipe', 8, 16, Costs(2, 3, 1, pair=4))
    self.assertEqual(run.bubble, 13)
    even = Costs(1, 1, 1)
    zero = schedules.simulate('zb1p', 8, 16, even).bubble
    dual = schedules.simulate('dualpipe', 8, 16, even).bubble
    self.assertEqual((zero, dual), (7, 6))  # Little gain without overlap.

  @parameterized.parameters(*schedule_orders.SCHEDULES)
  def test_bubble_does_not_grow_with_micro_batches(self, schedule):
    costs = Costs(1, 1.4, 0.9, pair=2.8)
    bubbles = [
      schedules.simulate(schedule, 8, count, costs).bubble
      for count in (16, 32, 64)
    ]
    self.assertAlmostEqual(bubbles[0], bubbles[1], places=9)
    self.assertAlmostEqual(bubbles[0], bubbles[2], places=9)


class LawsTest(parameterized.TestCase):
  @parameterized.parameters(*schedule_orders.SCHEDULES)
  def test_every_chunk_is_done_once_and_in_order(self, schedule):
    stages, count = 8, 20
    run = schedules.simulate(schedule, stages, count, Costs(1, 1.3, 0.8))
    forward, backward, weight = {}, {}, {}
    for events in run.events:
      for before, after in itertools.pairwise(events):
        self.assertLessEqual(before.finish, after.start)
      for event in events:
        action = event.action
        if action.forward:
          self.assertNotIn(action.forward, forward)
          forward[action.forward] = event
        if action.kind in ('B', 'FB', 'I'):
          self.assertNotIn(action.backward, backward)
          backward[action.backward] = event
        if action.kind in ('B', 'FB', 'W'):
          self.assertNotIn(action.backward, weight)
          weight[action.backward] = event
    self.assertLen(forward, stages * count)
    self.assertEqual(set(forward), set(backward))
    self.assertEqual(set(forward), set(weight))
    for chunk, event in forward.items():
      if chunk.stage:
        before = forward[chunk._replace(stage=chunk.stage - 1)]
        self.assertLessEqual(before.finish, event.start)
        upstream = backward[chunk._replace(stage=chunk.stage - 1)]
        self.assertLessEqual(backward[chunk].finish, upstream.start)
      self.assertLessEqual(event.finish, backward[chunk].start)
      self.assertLessEqual(backward[chunk].start, weight[chunk].start)


if __name__ == '__main__':
  absltest.main()
