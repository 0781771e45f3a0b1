"""Pipeline schedules, simulated event by event.

A rank of the pipeline runs its chunks in a fixed order; a chunk starts when its
rank is free and what it waits for is done. Four schedules: 1F1B; ZB1P, which
parts the backward pass into inputs and weights so that weight gradients fill
the bubble (arXiv 2401.10241, ZB-H1); DualPipe, fed from both ends, which runs a
forward and a backward chunk as one overlapped pair; and DualPipeV, its half in
the shape of a V, on half as many ranks (DeepSeek-V3, section 3.2.1, table 2;
the orders are those of github.com/deepseek-ai/DualPipe).

Transfers between ranks take no time here. Times are in any one unit.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

SCHEDULES = ('1f1b', 'zb1p', 'dualpipe', 'dualpipev')
_DUAL = ('dualpipe', 'dualpipev')


@dataclasses.dataclass(frozen=True)
class Costs:
  """Times of a micro-batch's chunks on one stage.

  Attributes:
    forward: F.
    backward_input: the gradient of the inputs, B - W.
    backward_weight: the gradient of the weights, W.
    pair: a forward and a full backward chunk of two micro-batches, overlapped;
      0: as long as both together.
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
    """FB."""
    return self.pair or self.forward + self.backward


class Chunk(NamedTuple):
  """A micro-batch at one stage of one direction of the pipeline."""

  direction: int
  micro_batch: int
  stage: int


class Action(NamedTuple):
  """What a rank does next.

  `kind` is F, B (full), I (inputs), W (weights) or FB; `backward` is the chunk
  whose gradients are taken, None in F; `forward` that of F and FB.
  """

  kind: str
  forward: Chunk | None = None
  backward: Chunk | None = None


class Event(NamedTuple):
  """An action with its times."""

  action: Action
  start: float
  finish: float


@dataclasses.dataclass(frozen=True)
class Timeline:
  """What happened on every rank.

  Attributes:
    events: per rank, in order.
  """

  events: Sequence[Sequence[Event]]

  @property
  def makespan(self) -> float:
    """From the first start to the last finish."""
    return max(events[-1].finish for events in self.events)

  def idle(self, rank: int) -> float:
    """Time of the makespan in which this rank does nothing."""
    busy = sum(event.finish - event.start for event in self.events[rank])
    return self.makespan - busy

  @property
  def bubble(self) -> float:
    """Idle time of the rank that has most of it."""
    return max(self.idle(rank) for rank in range(len(self.events)))

  def live_activations(self, rank: int) -> int:
    """Most chunks at once whose forward has begun and whose gradients (of
    weights, where they are apart) aren't done."""
    live = peak = 0
    for event in self.events[rank]:
      live += event.action.forward is not None
      peak = max(peak, live)
      live -= event.action.kind in ('B', 'W', 'FB')
    return peak

  @property
  def peak_live_activations(self) -> int:
    """The most live activations on any rank."""
    return max(self.live_activations(r) for r in range(len(self.events)))


def num_ranks(schedule: str, stages: int) -> int:
  """Ranks of a pipeline of so many stages: half as many for DualPipeV."""
  return stages // 2 if schedule == 'dualpipev' else stages


def check(schedule: str, stages: int, micro_batches: int) -> str:
  """Why a schedule can't run, in words; '' where it can."""
  if schedule not in SCHEDULES:
    return f'schedule {schedule!r} is not one of {", ".join(SCHEDULES)}'
  if schedule not in _DUAL:
    return ''
  if stages % 2 or micro_batches % 2:
    return (
      f'{schedule} needs even numbers of stages and micro-batches, not '
      f'{stages} and {micro_batches}'
    )
  if micro_batches < 2 * stages:
    return (
      f'{schedule} over {stages} stages needs at least {2 * stages} '
      f'micro-batches, not {micro_batches}'
    )
  return ''


def orders(
  schedule: str, stages: int, micro_batches: int
) -> list[list[Action]]:
  """The order of every rank's actions.

  Args:
    schedule: one of `SCHEDULES`.
    stages: of the model. A rank of a dual schedule holds two of them.
    micro_batches: per step, of both directions together.

  Raises:
    ValueError: the schedule can't run so.
  """
  wrong = check(schedule, stages, micro_batches)
  if wrong:
    raise ValueError(wrong)
  if schedule == '1f1b':
    return [_one_f_one_b(r, stages, micro_batches) for r in range(stages)]
  if schedule == 'zb1p':
    return [_zero_bubble(r, stages, micro_batches) for r in range(stages)]
  if schedule == 'dualpipe':
    half = micro_batches // 2
    return [_dualpipe(r, stages, half) for r in range(stages)]
  return [_dualpipe_v(r, stages, micro_batches) for r in range(stages // 2)]


def simulate(
  schedule: str, stages: int, micro_batches: int, costs: Costs
) -> Timeline:
  """Runs a schedule.

  Args:
    schedule: one of `SCHEDULES`.
    stages: of the model.
    micro_batches: per step.
    costs: of a chunk at one stage, the same for all.

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
  """When all that an action waits for is done; None: not yet known."""
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
  """Bubble of DeepSeek-V3's table 2.

  Equal to the simulated one for 1F1B, for ZB1P where neither F nor I is below
  W, and for the dual schedules where F = I = W; above theirs otherwise.
  """
  if schedule == '1f1b':
    return (stages - 1) * (costs.forward + costs.backward)
  if schedule == 'zb1p':
    once = costs.forward + costs.backward - 2 * costs.backward_weight
    return (stages - 1) * once
  once = costs.overlapped + costs.backward - 3 * costs.backward_weight
  return (stages / 2 - 1) * once


def closed_form_activations(schedule: str, stages: int) -> int:
  """Peak live chunks of DeepSeek-V3's table 2, given micro-batches enough."""
  return stages + 1 if schedule in _DUAL else stages


def stages_per_rank(schedule: str) -> int:
  """Stages whose parameters a rank holds (table 2).

  DualPipe's second is a copy of another rank's; DualPipeV's is the other half
  of the model, on half as many ranks.
  """
  return 2 if schedule in _DUAL else 1


@functools.lru_cache(maxsize=256)
def mean_counts(
  schedule: str, stages: int, micro_batches: int
) -> dict[str, float]:
  """Actions of each kind on a rank, averaged over ranks.

  Raises:
    ValueError: the schedule can't run so.
  """
  todo = orders(schedule, stages, micro_batches)
  counts = dict.fromkeys(('F', 'B', 'I', 'W', 'FB'), 0.0)
  for actions in todo:
    for action in actions:
      counts[action.kind] += 1 / len(todo)
  return counts


def dual_counts(stages: int, micro_batches: int) -> dict[str, float]:
  """`mean_counts` of DualPipe in closed form, for micro-batches enough.

  On a rank h from its end 3 PP/2 - 1 - h forwards are alone, one more in the
  middle; the rest are pairs.
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


# --- The orders. --------------------------------------------------------------


def _one_f_one_b(rank: int, stages: int, micro_batches: int) -> list[Action]:
  warm = min(stages - 1 - rank, micro_batches)
  chunks = [Chunk(0, i, rank) for i in range(micro_batches)]
  actions = [Action('F', forward=chunk) for chunk in chunks[:warm]]
  for i, chunk in enumerate(chunks):
    if warm + i < micro_batches:
      actions.append(Action('F', forward=chunks[warm + i]))
    actions.append(Action('B', backward=chunk))
  return actions


def _zero_bubble(rank: int, stages: int, micro_batches: int) -> list[Action]:
  """1F1B whose weight gradients come `rank` micro-batches later.

  Early ranks wait for late ones at the end, so late ones put weights off; as
  many chunks are alive on every rank.
  """
  actions, taken = [], 0
  for action in _one_f_one_b(rank, stages, micro_batches):
    if action.kind == 'F':
      actions.append(action)
      continue
    actions.append(Action('I', backward=action.backward))
    taken += 1
    if taken > rank:
      late = action.backward._replace(micro_batch=taken - 1 - rank)
      actions.append(Action('W', backward=late))
  actions += [
    Action('W', backward=Chunk(0, i, rank))
    for i in range(max(micro_batches - rank, 0), micro_batches)
  ]
  return actions


def _dualpipe(rank: int, stages: int, per_direction: int) -> list[Action]:
  """Two directions; every rank holds a stage of each."""
  depth = min(rank, stages - 1 - rank)
  # The direction whose first stages are at this end of the pipeline is near.
  near = 0 if rank < stages // 2 else 1
  order = _Order(
    near=lambda i: Chunk(near, i, depth),
    far=lambda i: Chunk(1 - near, i, stages - 1 - depth),
  )
  return _dual_order(order, depth, stages // 2, per_direction)


def _dualpipe_v(rank: int, stages: int, micro_batches: int) -> list[Action]:
  """One direction, down through the first half and up through the second."""
  order = _Order(
    near=lambda i: Chunk(0, i, rank),
    far=lambda i: Chunk(0, i, stages - 1 - rank),
  )
  return _dual_order(order, rank, stages // 2, micro_batches)


class _Order:
  """Writes actions down; counts the micro-batches of both its stages."""

  def __init__(self, near, far):
    self.actions: list[Action] = []
    self._chunk = (near, far)
    self._forwards = [0, 0]
    self._backwards = [0, 0]
    self._weights: list[Chunk] = []

  def _next(self, counts: list[int], side: int) -> Chunk:
    counts[side] += 1
    return self._chunk[side](counts[side] - 1)

  def forward(self, side: int):
    chunk = self._next(self._forwards, side)
    self.actions.append(Action('F', forward=chunk))

  def backward(self, side: int, split: bool = False):
    chunk = self._next(self._backwards, side)
    self.actions.append(Action('I' if split else 'B', backward=chunk))
    if split:
      self._weights.append(chunk)

  def weight(self):
    self.actions.append(Action('W', backward=self._weights.pop(0)))

  def pair(self, forward_side: int):
    forward = self._next(self._forwards, forward_side)
    backward = self._next(self._backwards, 1 - forward_side)
    self.actions.append(Action('FB', forward=forward, backward=backward))


def _dual_order(
  order: _Order, depth: int, half: int, micro_batches: int
) -> list[Action]:
  """The eight steps of DualPipe for a rank `depth` from its end.

  Args:
    order: writes them down. Side 0 is the near stage, 1 the far one.
    depth: 0 to half - 1; the last is in the middle.
    half: half the number of stages.
    micro_batches: that each stage sees.
  """
  rest = half - depth - 1
  for _ in range(2 * rest):
    order.forward(0)
  for _ in range(depth + 1):
    order.forward(0)
    order.forward(1)
  for _ in range(rest):
    order.backward(1, split=True)
    order.weight()
    order.forward(1)
  for i in range(micro_batches - 2 * half + depth + 1):
    if i == 0 and rest == 0:  # Apart, which makes the bubble smaller.
      order.forward(0)
      order.backward(1)
    else:
      order.pair(0)
    order.pair(1)
  for _ in range(rest):
    order.backward(1)
    order.pair(1)
  split = False
  for i in range(depth + 1):
    middle = i == (depth + 1) // 2
    split = split or (middle and depth % 2 == 1)
    order.backward(1, split)
    split = split or (middle and depth % 2 == 0)
    order.backward(0, split)
  for _ in range(rest):
    order.weight()
    order.backward(0, split=True)
  for _ in range(depth + 1):
    order.weight()
  return order.actions
