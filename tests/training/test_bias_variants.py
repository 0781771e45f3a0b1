"""The router bias does not depend on how a step is computed, to the last bit."""

from absl.testing import absltest
import pytest
from virtual_devices import run_script

# A seed whose choices are clear enough: activations differ in the last bit
# between the shapes of batches.
_SEED, _MARGIN = 4, 1e-5


class BiasTest(absltest.TestCase):
  @pytest.mark.slow
  def test_twenty_steps_end_alike_in_every_variant(self):
    found = run_script('training/bias_variants.py', 4, str(_SEED), fast=False)
    self.assertLen(found, 7)
    for name, (digest, margin) in found.items():
      self.assertGreater(margin, _MARGIN, name)
      self.assertEqual(digest, found['plain'][0], name)


if __name__ == '__main__':
  absltest.main()
