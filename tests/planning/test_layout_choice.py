import dataclasses
import re

from absl.testing import absltest, parameterized

from planning import requests
from seekax.configuration import presets
from seekax.configuration.errors import InputError
from seekax.planning import hardware, layout_choice
from seekax.planning import plan as plan_lib


class ChoiceTest(absltest.TestCase):
  def test_without_a_layout_the_cheapest_is_taken(self):
    request = requests.request(config=requests.config(presets.v2()), devices=96)
    plan = plan_lib.make(request)
    found = layout_choice.search(request, 3)
    self.assertEqual(plan.run.layout, found[0].layout)

  def test_racks_get_no_layout_of_nodes_of_eight(self):
    device = hardware.DEVICES['gb200']
    plan = plan_lib.make(requests.request(device=device, devices=1024))
    self.assertEqual(plan.layout_from, layout_choice.CHEAPEST)
    self.assertEqual(plan.run.layout.expert, 64)
    self.assertEqual(plan.traffic_bytes_per_token()['dispatch'].network, 0)


class RefusalTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(devices=8), 'holds this run: the leanest .* --devices=128 works'),
    (
      dict(devices=2**20),
      'no layout spreads a batch of 15360 sequences .* --devices=32768 works',
    ),
    (
      dict(layout='pipeline:4,expert_node:8,expert:8'),
      r'it takes .* GB, and a plan uses 78 of the 80 of a H800; the nearest',
    ),
    (
      dict(layout='pipeline:64,expert:8'),
      '64 stages are more than the 62 layers; the nearest that fits',
    ),
  )
  def test_a_layout_that_cannot_be_is_said(self, changes, words):
    with self.assertRaisesRegex(InputError, words):
      plan_lib.make(requests.request(**changes))

  @parameterized.parameters(
    (dict(layout='pipeline:5,expert_node:8,expert:8,remat:full'), True),
    (dict(layout='paper', devices=1000), True),  # 1,024 don't hold it.
    (dict(layout='paper', devices=1900), True),
    (dict(layout='pipeline:7'), False),  # No number of devices helps.
    (dict(devices=7), True),
    (dict(devices=3001), True),
  )
  def test_advised_numbers_of_devices_work(self, changes, has_advice):
    request = requests.request(**changes)
    with self.assertRaises(InputError) as caught:
      plan_lib.make(request)
    advice = re.findall(r'--devices=(\d+) works', str(caught.exception))
    self.assertLen(advice, int(has_advice))
    for devices in advice:
      plan_lib.make(dataclasses.replace(request, devices=int(devices)))

  def test_a_batch_that_does_not_divide_is_no_want_of_memory(self):
    config = requests.config(presets.tiny(), sequence_length=32, batch_size=8)
    with self.assertRaisesRegex(InputError, 'a batch of 8 sequences'):
      plan_lib.make(requests.request(config=config))

  def test_the_nearest_that_fits_is_taken_as_it_stands(self):
    with self.assertRaises(InputError) as caught:
      plan_lib.make(
        requests.request(layout='pipeline:4,expert_node:8,expert:8')
      )
    near = str(caught.exception).rpartition('--layout=')[2]
    plan = plan_lib.make(requests.request(layout=near))
    self.assertLessEqual(plan.memory.total, 80e9)


if __name__ == '__main__':
  absltest.main()
