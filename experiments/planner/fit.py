"""The constants of the planner's model of time, fitted on three sources."""

from collections.abc import Callable
import dataclasses

import insights_table_4
from planner import figures, runs
from seekax.planning import step_time
from seekax.planning.hardware import Constants, FITTED
from seekax.planning.run import Run

_ROUNDS = 20  # steps of Newton's method; a handful would do


def fit(start: Constants = FITTED) -> Constants:
  """The constants that the three sources give.

  `expert_efficiency` and `passes` solve two equations: the arithmetic of F, I
  and W together as the published chunks say, and Megatron's rate in bfloat16.
  Then follow, one after the other, the slowdown of a pair, the stretch of the
  bubble and the efficiency of dense products.
  """
  constants = start
  v3, megatron = runs.deepseek_v3(), runs.megatron('bfloat16')
  published = insights_table_4.chunks()
  for _ in range(_ROUNDS):
    constants = _two_equations(
      constants,
      lambda c: _alone(v3, c) / (published.forward + published.backward) - 1,
      lambda c: figures.MEGATRON_BF16 / figures.rate(megatron)(c) - 1,
    )
    arithmetic = step_time.chunks(v3, constants).arithmetic
    slowdown = published.overlapped / arithmetic
    constants = dataclasses.replace(
      constants, overlap_slowdown=slowdown, bubble_stretch=1.0
    )
    bubble = step_time.predict(v3, constants).bubble
    constants = dataclasses.replace(
      constants, bubble_stretch=insights_table_4.MPFT.phases.bubble / bubble
    )
    constants = _fit_dense(constants)
  return constants


def _fit_dense(constants: Constants) -> Constants:
  """One step of Newton's method towards the hours of Llama 3.1 405B."""
  hours = figures.hours(
    runs.llama('llama3_405b', 16, 8, 16384),
    runs.LLAMA_TOKENS['llama3_405b'],
    1.0,
  )

  def excess(inverse: float) -> float:
    changed = dataclasses.replace(constants, dense_efficiency=1 / inverse)
    return hours(changed) / figures.LLAMA_405B_HOURS - 1

  inverse = 1 / constants.dense_efficiency
  inverse -= excess(inverse) / _slope(excess, inverse)
  return dataclasses.replace(constants, dense_efficiency=1 / inverse)


def _alone(run: Run, constants: Constants) -> float:
  """Seconds of F and B of a chunk that runs alone and shows its exchange."""
  chunk = step_time.chunks(run, constants)
  return chunk.arithmetic + 2 * chunk.exchange


def _slope(function: Callable[[float], float], at: float) -> float:
  step = 1e-6 * at
  return (function(at + step) - function(at)) / step


def _two_equations(constants: Constants, first, second) -> Constants:
  """One step of Newton's method in 1 / expert_efficiency and passes."""
  unknown = (1 / constants.expert_efficiency, constants.passes)

  def at(inverse: float, passes: float) -> tuple[float, float]:
    changed = dataclasses.replace(
      constants, expert_efficiency=1 / inverse, passes=passes
    )
    return first(changed), second(changed)

  here = at(*unknown)
  steps = [1e-6 * value for value in unknown]
  right = at(unknown[0] + steps[0], unknown[1])
  up = at(unknown[0], unknown[1] + steps[1])
  a, c = ((right[i] - here[i]) / steps[0] for i in range(2))
  b, d = ((up[i] - here[i]) / steps[1] for i in range(2))
  determinant = a * d - b * c
  inverse = unknown[0] - (d * here[0] - b * here[1]) / determinant
  passes = unknown[1] - (a * here[1] - c * here[0]) / determinant
  return dataclasses.replace(
    constants, expert_efficiency=1 / inverse, passes=passes
  )
