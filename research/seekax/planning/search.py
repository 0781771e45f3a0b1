"""The cheapest layout that fits: every divisor of every axis is tried."""

from collections.abc import Iterator
import dataclasses
import itertools
import math
from typing import NamedTuple

from seekax.config import ModelConfig
from seekax.planning import layout as layout_lib
from seekax.planning import memory, step_time
from seekax.planning.layout import Layout
from seekax.planning.step_time import Run

# More stages or tensor ranks than these never paid in what was published.
_MOST_STAGES, _MOST_TENSOR = 64, 8
_MICRO_BATCHES = (1, 2, 4)
_VIRTUAL_STAGES = (1, 2, 4)
_REMATS = ('none', 'paper', 'full')
# Positions of a sequence that one device is to hold at most.
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
    devices: that every layout uses, all of them.
    most: at most so many are returned; 0: all.

  Returns:
    Per mesh (the sizes of all axes) only its best schedule, micro-batch and
    recomputation. Nothing where nothing fits.
  """
  best: dict[tuple[int, ...], Found] = {}
  for layout in _layouts(run, devices):
    if layout_lib.problem(
      layout, run.model, run.device, run.batch_size, run.sequence_length
    ):
      continue
    needed = required_bytes(dataclasses.replace(run, layout=layout))
    if needed > run.device.memory_bytes:
      continue
    seconds = step_time.predict(dataclasses.replace(run, layout=layout)).seconds
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
  """The layout that fits with fewest fields changed, the cheapest of these."""
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


def required_bytes(run: Run) -> float:
  """Bytes on the device that holds most."""
  return memory.training_memory(
    run.model,
    run.layout,
    run.batch_size,
    run.sequence_length,
    run.precision,
    run.moment_dtype,
  ).total


def divisors(number: int) -> list[int]:
  """All of them, in order."""
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
    expert = math.gcd(over, domain)
    for fsdp in {1, rest}:
      base = Layout(
        pipeline=pipeline,
        tensor=tensor,
        context=context,
        expert_node=over // expert,
        expert=expert,
        fsdp=fsdp,
        data=rest // fsdp,
      )
      yield from _variants(base, model)


def _variants(base: Layout, model: ModelConfig) -> Iterator[Layout]:
  """Schedules, micro-batches and recomputation of a mesh."""
  orders = [('1f1b', 1)]
  if base.pipeline > 1:
    orders = [('1f1b', count) for count in _VIRTUAL_STAGES]
    orders += [('zb1p', 1)]
    if model.uses_experts and base.pipeline % 2 == 0:
      orders += [('dualpipe', 1)]
  for (schedule, virtual), micro, remat in itertools.product(
    orders, _MICRO_BATCHES, _REMATS
  ):
    yield dataclasses.replace(
      base,
      schedule=schedule,
      virtual_stages=virtual,
      micro_batch=micro,
      remat=remat,
    )
