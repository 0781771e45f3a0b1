"""Stages get the weights that masters have, and masters their gradients."""

import dataclasses

from absl.testing import absltest
import pytest
from virtual_devices import run_script

from seekax.configuration import presets
from seekax.training.stages import layer_counts


class StagesTest(absltest.TestCase):
  # Steps in a pipeline are wrong where this is.
  @pytest.mark.slow
  def test_what_goes_to_stages_comes_back(self):
    for width, found in run_script('training/stages_cases.py', 4).items():
      with self.subTest(width):
        self.assertTrue(found['same_place'])
        self.assertEqual(set(found['stack']), {1.0})
        # A copy on either stage, whose gradients are summed.
        self.assertEqual(set(found['others']), {2.0})


class LayerCountsTest(absltest.TestCase):
  def test_published_models(self):
    self.assertEqual(layer_counts(presets.v3_671b(), 16), (1, *14 * (4,), 1))
    llama = presets.llama3_405b()
    self.assertEqual(layer_counts(llama, 16), (*15 * (8,), 6))
    model = dataclasses.replace(
      presets.tiny(), num_layers=4, num_dense_layers=0, mtp_depth=0
    )
    self.assertEqual(layer_counts(model, 2), (2, 2))


if __name__ == '__main__':
  absltest.main()
