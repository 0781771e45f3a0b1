"""Pipeline schedules: simulated event by event, and in closed form.

A rank runs its chunks in the order of schedule_orders.py; a chunk starts when
its rank is free and everything it waits for is done.

Transfers between ranks take no time here. Times are in any one unit.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

from seekax.planning.schedule_orders import Action, Chunk, DUAL, orders


@dataclasses.dataclass(frozen=True)
class Costs:
  """Times of a micro-batch's chunks on one stage.

  Attributes:
    forward: duration of a forward chunk (F).
    backward_input: duration of the gradient of the inputs (B - W).
    backward_weight: duration of the gradient of the weights (W).
    pair: a forward and a full backward chunk of two micro-batches, overlapped
      (FB); 0: as long as both one after the other.
  """

  forward: float
  backward_input: float
  backward_weight: float
  pair: float = 0.0

  @property
  def backward(self) -> float:
    """B, a full backward chunk."""
    return self.backward_input + self.backward_weight

  @property
  def overlapped(self) -> float:
    """FB, an overlapped pair."""
    return self.pair or self.forward + self.backward


class Event(NamedTuple):
  """An action with its times."""

  action: Action
  start: float
  finish: float


@dataclasses.dataclass(frozen=True)
class Timeline:
  """What happened on every rank.

  Attributes:
    events: the events of every rank, in order.
  """

  events: Sequence[Sequence[Event]]

  @property
  def makespan(self) -> float:
    """From the first start to the last finish."""
    return max(events[-1].finish for events in self.events)

  def idle(self, rank: int) -> float:
    """The time in which this rank does nothing."""
    busy = sum(event.finish - event.start for event in self.events[rank])
    return self.makespan - busy

  @property
  def bubble(self) -> float:
    """The idle time of the rank that idles longest."""
    return max(self.idle(rank) for rank in range(len(self.events)))

  def live_activations(self, rank: int) -> int:
    """The most chunks that are alive on a rank at once.

    A chunk lives from the start of its forward until its gradients are done,
    those of the weights if they are apart.
    """
    live = peak = 0
    for event in self.events[rank]:
      live += event.action.forward is not None
      peak = max(peak, live)
      live -= event.action.kind in ('B', 'W', 'FB')
    return peak

  @property
  def peak_live_activations(self) -> int:
    """Live chunks on the rank that holds most."""
    return max(self.live_activations(r) for r in range(len(self.events)))


def simulate(
  schedule: str, stages: int, micro_batches: int, costs: Costs
) -> Timeline:
  """Runs a schedule.

  Args:
    schedule: one of `SCHEDULES`.
    stages: the model's stages.
    micro_batches: micro-batches per step.
    costs: times of a chunk at one stage, the same for all stages.

  Raises:
    ValueError: the schedule can't run so.
  """
  todo = orders(schedule, stages, micro_batches)
  time = {
    'F': costs.forward,
    'B': costs.backward,
    'I': costs.backward_input,
    'W': costs.backward_weight,
    'FB': costs.overlapped,
  }
  events: list[list[Event]] = [[] for _ in todo]
  forward_done: dict[Chunk, float] = {}
  backward_done: dict[Chunk, float] = {}
  remaining = sum(map(len, todo))
  while remaining:
    moved = False
    for rank, actions in enumerate(todo):
      while len(events[rank]) < len(actions):
        action = actions[len(events[rank])]
        ready = _ready(action, stages, forward_done, backward_done)
        if ready is None:
          break
        start = max(ready, events[rank][-1].finish if events[rank] else 0.0)
        finish = start + time[action.kind]
        events[rank].append(Event(action, start, finish))
        if action.forward:
          forward_done[action.forward] = finish
        if action.backward and action.kind != 'W':
          backward_done[action.backward] = finish
        remaining -= 1
        moved = True
    if not moved:
      raise AssertionError(f'{schedule} waits for itself')
  return Timeline(events)


def _ready(action, stages, forward_done, backward_done) -> float | None:
  """When everything that an action waits for is done; None: not yet known."""
  times = [0.0]
  if action.forward and action.forward.stage:
    before = action.forward._replace(stage=action.forward.stage - 1)
    times.append(forward_done.get(before))
  if action.backward:
    chunk = action.backward
    if action.kind == 'W':
      times.append(backward_done.get(chunk))
    elif chunk.stage == stages - 1:
      times.append(forward_done.get(chunk))
    else:
      after = chunk._replace(stage=chunk.stage + 1)
      times.append(backward_done.get(after))
  return None if None in times else max(times)


def closed_form_bubble(schedule: str, stages: int, costs: Costs) -> float:
  """The bubble by DeepSeek-V3's table 2.

  It equals the simulated bubble for 1F1B, for ZB1P if neither F nor I is below
  W, and for the dual schedules if F = I = W; otherwise it is longer.
  """
  if schedule == '1f1b':
    return (stages - 1) * (costs.forward + costs.backward)
  if schedule == 'zb1p':
    once = costs.forward + costs.backward - 2 * costs.backward_weight
    return (stages - 1) * once
  once = costs.overlapped + costs.backward - 3 * costs.backward_weight
  return (stages / 2 - 1) * once


def closed_form_activations(schedule: str, stages: int) -> int:
  """Peak live chunks by DeepSeek-V3's table 2, with enough micro-batches."""
  return stages + 1 if schedule in DUAL else stages


def stages_per_rank(schedule: str) -> int:
  """Stages whose parameters a rank holds (DeepSeek-V3, table 2).

  The second stage of a DualPipe rank is a copy of another rank's; a DualPipeV
  rank holds a stage of either half of the model, on half as many ranks.
  """
  return 2 if schedule in DUAL else 1


def dual_counts(stages: int, micro_batches: int) -> dict[str, float]:
  """How often a DualPipe rank does each kind of action, averaged over ranks.

  This closed form needs enough micro-batches. On a rank h places from its end
  3 PP/2 - 1 - h forwards run alone, one more in the middle; all others run in
  pairs.
  """
  half = stages // 2
  depth, middle = (half - 1) / 2, 1 / half  # Means over ranks.
  alone = 3 * half - 1 - depth + middle
  apart = 2 * half - 1 - depth
  return {
    'F': alone,
    'B': half + middle,
    'I': apart,
    'W': apart,
    'FB': micro_batches - alone,
  }
