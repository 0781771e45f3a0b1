"""The constants in hardware.py are those that the three sources give."""

import dataclasses
import pathlib
import sys

from absl.testing import absltest

# Experiments are scripts, not a package.
sys.path.append(
  str(pathlib.Path(__file__).resolve().parents[2] / 'experiments')
)
from planner import fit
from seekax.planning.hardware import Constants, FITTED


class FitTest(absltest.TestCase):
  def test_constants_are_those_of_the_sources(self):
    fitted = dataclasses.asdict(fit.fit(Constants()))
    for name, value in dataclasses.asdict(FITTED).items():
      self.assertAlmostEqual(fitted[name] / value, 1, delta=1e-4, msg=name)

  def test_fit_does_not_depend_on_where_it_starts(self):
    start = Constants(
      expert_efficiency=0.5,
      passes=10,
      dense_efficiency=0.4,
      overlap_slowdown=1.5,
      bubble_stretch=1,
    )
    fitted = fit.fit(start)
    self.assertAlmostEqual(fitted.passes / FITTED.passes, 1, delta=1e-4)


if __name__ == '__main__':
  absltest.main()
