import dataclasses
import itertools
import time

from absl.testing import absltest, parameterized

from seekax.configuration import presets
from seekax.planning import hardware, search, step_time
from seekax.planning import layout as layout_lib
from seekax.planning.layout import Layout
from seekax.planning.run import Run

_LITE = Run(presets.v2_lite(), hardware.DEVICES['h100'], Layout(), 512, 4096)


class SearchTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 12, 97, 360)
  def test_divisors(self, number):
    self.assertEqual(
      search.divisors(number),
      [n for n in range(1, number + 1) if number % n == 0],
    )

  def test_what_is_found_fits_and_is_in_order(self):
    found = search.cheapest(_LITE, 64)
    self.assertGreater(len(found), 10)
    seconds = [item.seconds for item in found]
    self.assertEqual(seconds, sorted(seconds))
    for item in found:
      run = dataclasses.replace(_LITE, layout=item.layout)
      self.assertEqual(item.layout.devices, 64)
      self.assertEqual(
        layout_lib.problem(item.layout, run.model, run.device, 512, 4096), ''
      )
      self.assertLessEqual(run.training_memory().total, 78e9)
      self.assertEqual(item.seconds, step_time.predict(run).seconds)
    self.assertLen(search.cheapest(_LITE, 64, most=3), 3)

  def test_no_layout_of_a_plain_grid_is_cheaper(self):
    best = search.cheapest(_LITE, 16, most=1)[0].seconds
    tried = 0
    for pipeline, tensor, expert, fsdp, micro, remat in itertools.product(
      (1, 2, 4), (1, 2, 4), (1, 2, 4, 8), (1, 2), (1, 2), ('none', 'paper')
    ):
      layout = Layout(
        pipeline=pipeline,
        tensor=tensor,
        expert=expert,
        fsdp=fsdp,
        data=16 // (pipeline * tensor * expert * fsdp) or 1,
        micro_batch=micro,
        remat=remat,
      )
      run = dataclasses.replace(_LITE, layout=layout)
      if layout.devices != 16 or run.training_memory().total > 78e9:
        continue
      if layout_lib.problem(layout, run.model, run.device, 512, 4096):
        continue
      if fsdp not in (1, layout.data * fsdp):  # The search takes both ends.
        continue
      tried += 1
      self.assertLessEqual(best, step_time.predict(run).seconds)
    self.assertGreater(tried, 20)

  def test_recomputing_more_takes_more_time(self):
    # The search takes the first that fits.
    for layout in (Layout(expert=8), Layout(pipeline=2, tensor=2, expert=4)):
      seconds, needed = zip(
        *(
          (step_time.predict(run).seconds, run.training_memory().total)
          for run in (
            dataclasses.replace(
              _LITE, layout=dataclasses.replace(layout, remat=remat)
            )
            for remat in ('none', 'paper', 'full')
          )
        ),
        strict=True,
      )
      self.assertEqual(list(seconds), sorted(seconds))
      self.assertEqual(list(needed), sorted(needed, reverse=True))

  @parameterized.parameters('h800', 'gb200')
  def test_links_join_no_more_than_their_domain(self, name):
    device = hardware.DEVICES[name]
    run = dataclasses.replace(
      _LITE, model=presets.v3_671b(), device=device, batch_size=15360
    )
    found = search.cheapest(run, 2048)
    inside = [
      item.layout.tensor * item.layout.context * item.layout.expert
      for item in found
      if item.layout.expert > 1
    ]
    self.assertLessEqual(max(inside), device.domain_size)
    self.assertEqual(max(inside), {'h800': 8, 'gb200': 64}[name])

  def test_what_was_published_is_searched_in_seconds(self):
    run = Run(
      presets.v3_671b(),
      hardware.DEVICES['h800'],
      Layout(),
      15360,
      4096,
      'fp8',
      'bfloat16',
    )
    began = time.process_time()
    found = search.cheapest(run, 2048)
    self.assertLess(time.process_time() - began, 30)
    layouts = [item.layout for item in found]
    self.assertIn(layout_lib.paper(2048), layouts)

  def test_nearest_changes_least(self):
    run = dataclasses.replace(
      _LITE, layout=Layout(pipeline=2, expert=8, data=4, micro_batch=64)
    )
    near = search.nearest(run, 64)
    assert near
    self.assertEqual((near.pipeline, near.expert, near.data), (2, 8, 4))

  def test_what_fits_nowhere(self):
    run = dataclasses.replace(_LITE, model=presets.v3_671b())
    self.assertEmpty(search.cheapest(run, 8))
    self.assertIsNone(search.nearest(run, 8))


if __name__ == '__main__':
  absltest.main()
