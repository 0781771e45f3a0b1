"""The cheapest layout that fits, among those that the search tries.

The search uses all devices. It tries pipeline, tensor, context and expert ranks
that divide what they cut (at most 64 stages, 8 tensor ranks, and context ranks
for sequences beyond 16,384 positions). It cuts experts over nodes and within
one in every way that fast links allow, and makes all remaining ranks either
data or fsdp ranks. It tries 1F1B with 1, 2 or 4 stages per rank, ZB1P and, for
models with experts, DualPipe; micro-batches of 1, 2 or 4 sequences; every
remat. It doesn't try data and fsdp ranks at once, nor dispatch in bfloat16
under FP8, nor `overlap` and `whole_experts`, which this program doesn't do.
"""

from collections.abc import Iterator
import dataclasses
import itertools
import math
from typing import NamedTuple

from seekax.configuration.model import ModelConfig
from seekax.planning import layout as layout_lib
from seekax.planning import memory, step_time
from seekax.planning.layout import Layout
from seekax.planning.run import Run

# In published runs more stages or tensor ranks than these never paid.
_MOST_STAGES, _MOST_TENSOR = 64, 8
_MICRO_BATCHES = (1, 2, 4)
_VIRTUAL_STAGES = (1, 2, 4)
_REMATS = ('none', 'paper', 'full')
# The most positions of a sequence that one device should hold.
_LONG = 32768


class Found(NamedTuple):
  """A layout that fits: its seconds per step and its bytes per device."""

  layout: Layout
  seconds: float
  memory: float


def cheapest(run: Run, devices: int, most: int = 0) -> list[Found]:
  """Layouts that fit, cheapest first.

  Args:
    run: what is trained; its own layout isn't looked at.
    devices: how many devices every layout uses.
    most: the most layouts to return; 0: all.

  Returns:
    For each mesh (the sizes of all axes) its best schedule, micro-batch and
    recomputation. Nothing if nothing fits.
  """
  best: dict[tuple[int, ...], Found] = {}
  for tried in _runs(run, devices):
    if _problem(tried):
      continue
    one, needed = _least_recomputed(tried)
    if one is None:
      continue
    layout, seconds = one.layout, step_time.predict(one).seconds
    mesh = (
      layout.pipeline,
      layout.tensor,
      layout.context,
      layout.expert_node,
    ) + (layout.expert, layout.fsdp, layout.data)
    if mesh not in best or seconds < best[mesh].seconds:
      best[mesh] = Found(layout, seconds, needed)
  found = sorted(best.values(), key=lambda found: found.seconds)
  return found[:most] if most else found


def nearest(run: Run, devices: int) -> Layout | None:
  """The cheapest of the layouts that fit with the fewest fields changed."""
  names = [field.name for field in dataclasses.fields(Layout)]
  found = cheapest(run, devices)
  if not found:
    return None
  return min(
    found,
    key=lambda other: (
      sum(
        getattr(other.layout, name) != getattr(run.layout, name)
        for name in names
      ),
      other.seconds,
    ),
  ).layout


def any_fits(run: Run, devices: int) -> bool:
  """Whether `cheapest` would find something."""
  return any(
    not _problem(one) and _least_recomputed(one)[0] is not None
    for one in _runs(run, devices)
  )


def leanest(run: Run, devices: int) -> float:
  """Bytes of the layout that takes least; infinite if there is none."""
  return min(
    (
      _recomputing(one, _REMATS[-1]).training_memory().total
      for one in _runs(run, devices)
      if not _problem(one)
    ),
    default=math.inf,
  )


def _recomputing(run: Run, remat: str) -> Run:
  layout = dataclasses.replace(run.layout, remat=remat)
  return dataclasses.replace(run, layout=layout)


def _least_recomputed(run: Run) -> tuple[Run | None, float]:
  """The run with the first of _REMATS that fits, and its bytes.

  What follows in _REMATS takes more time.
  """
  room = memory.room(run.device)
  for remat in _REMATS:
    one = _recomputing(run, remat)
    needed = one.training_memory().total
    if needed <= room:
      return one, needed
  return None, 0.0


def _runs(run: Run, devices: int) -> Iterator[Run]:
  return (
    dataclasses.replace(run, layout=layout) for layout in _layouts(run, devices)
  )


def _problem(run: Run) -> str:
  return layout_lib.problem(
    run.layout, run.model, run.device, run.batch_size, run.sequence_length
  )


def divisors(number: int) -> list[int]:
  """All divisors of a number, in order."""
  low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
  return sorted({*low, *(number // n for n in low)})


def _layouts(run: Run, devices: int) -> Iterator[Layout]:
  model, domain = run.model, run.device.domain_size
  layers = model.num_layers + model.mtp_depth
  stages = [n for n in divisors(devices) if n <= min(_MOST_STAGES, layers)]
  tensors = [n for n in divisors(devices) if n <= min(_MOST_TENSOR, domain)]
  contexts = [
    n
    for n in divisors(devices)
    if n == 1 or n <= run.sequence_length // _LONG * 2
  ]
  experts = divisors(model.num_experts) if model.uses_experts else [1]
  for pipeline, tensor, context, over in itertools.product(
    stages, tensors, contexts, experts
  ):
    rest, odd = divmod(devices, pipeline * tensor * context * over)
    if odd or rest == 0:
      continue
    inside = domain // (tensor * context)
    for expert in divisors(over):
      # Fast links join all devices of a node, so they don't hold several nodes.
      if expert > max(inside, 1) or expert < over <= inside:
        continue
      for fsdp in {1, rest}:
        base = Layout(
          pipeline=pipeline,
          tensor=tensor,
          context=context,
          expert_node=over // expert,
          expert=expert,
          fsdp=fsdp,
          data=rest // fsdp,
          exchange_slack=run.layout.exchange_slack,
          dispatch_dtype=run.layout.dispatch_dtype,
        )
        yield from _variants(base, model)


def _variants(base: Layout, model: ModelConfig) -> Iterator[Layout]:
  """Schedules and micro-batches of a mesh."""
  orders = [('1f1b', 1)]
  if base.pipeline > 1:
    orders = [('1f1b', count) for count in _VIRTUAL_STAGES]
    orders += [('zb1p', 1)]
    if model.uses_experts and base.pipeline % 2 == 0:
      orders += [('dualpipe', 1)]
  for (schedule, virtual), micro in itertools.product(orders, _MICRO_BATCHES):
    yield dataclasses.replace(
      base,
      schedule=schedule,
      virtual_stages=virtual,
      micro_batch=micro,
    )
