"""The order in which each rank of a pipeline runs its chunks.

Four schedules: 1F1B; ZB1P, which splits the backward pass into inputs and
weights so that weight gradients fill the bubble (arXiv 2401.10241, ZB-H1);
DualPipe, fed from both ends, which runs a forward and a backward chunk as one
overlapped pair; and DualPipeV, half of DualPipe in the shape of a V, on half as
many ranks (DeepSeek-V3, section 3.2.1, table 2; the orders are those of
github.com/deepseek-ai/DualPipe).
"""

from typing import NamedTuple

SCHEDULES = ('1f1b', 'zb1p', 'dualpipe', 'dualpipev')
DUAL = ('dualpipe', 'dualpipev')


class Chunk(NamedTuple):
  """A micro-batch at one stage of one direction of the pipeline."""

  direction: int
  micro_batch: int
  stage: int


class Action(NamedTuple):
  """What a rank does next.

  `kind` is F, B (full), I (inputs), W (weights) or FB. `forward` is the chunk
  that F and FB run forward; `backward` is the chunk whose gradients all but F
  take.
  """

  kind: str
  forward: Chunk | None = None
  backward: Chunk | None = None


def check(schedule: str, stages: int, micro_batches: int) -> str:
  """Why a schedule can't run, in words; '' if it can."""
  if schedule not in SCHEDULES:
    return f'schedule {schedule!r} is not one of {", ".join(SCHEDULES)}'
  if schedule not in DUAL:
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
    stages: the model's stages. A rank of a dual schedule holds two of them.
    micro_batches: micro-batches per step, both directions together.

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

  Early ranks wait for late ones at the end, so late ones delay the weights;
  every rank has as many chunks alive.
  """
  actions, taken = [], 0
  for action in _one_f_one_b(rank, stages, micro_batches):
    if action.backward is None:
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
    order: writes the actions down. Side 0 is the near stage, 1 the far one.
    depth: 0 to half - 1; the last rank is in the middle.
    half: half the number of stages.
    micro_batches: micro-batches that each stage sees.
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
    if i == 0 and rest == 0:  # Running them apart makes the bubble smaller.
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
