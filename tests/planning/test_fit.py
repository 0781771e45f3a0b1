import dataclasses

from absl.testing import absltest

from seekax.planning import fit, step_time


class FitTest(absltest.TestCase):
  def test_constants_are_those_of_the_sources(self):
    fitted = dataclasses.asdict(fit.fit(step_time.Constants()))
    for name, value in dataclasses.asdict(step_time.FITTED).items():
      self.assertAlmostEqual(fitted[name] / value, 1, delta=1e-4, msg=name)

  def test_fit_does_not_depend_on_where_it_starts(self):
    start = step_time.Constants(
      expert_efficiency=0.5,
      passes=10,
      dense_efficiency=0.4,
      overlap_slowdown=1.5,
      bubble_stretch=1,
    )
    fitted = fit.fit(start)
    self.assertAlmostEqual(
      fitted.passes / step_time.FITTED.passes, 1, delta=1e-4
    )


if __name__ == '__main__':
  absltest.main()
