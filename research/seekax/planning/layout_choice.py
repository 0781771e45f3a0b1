"""Chooses the layout of a plan, and says what to do if none works."""

import dataclasses
import math

from seekax.configuration.errors import InputError
from seekax.planning import layout as layout_lib
from seekax.planning import memory
from seekax.planning import search as search_lib
from seekax.planning.layout import Layout
from seekax.planning.request import Request
from seekax.planning.run import Run

# Where a layout is from.
ASKED, PAPER, CHEAPEST = 'as asked', "the paper's", 'the cheapest found'
# A plan proposes numbers of devices that are powers of two, up to this power.
_MOST_POWER = 15
_PAPER_DOMAIN = 8  # Devices that fast links join where the paper's layout ran.
# How far from the number asked a working number of devices is looked for, in
# multiples of what the layout's axes take.
_NEAR = 32


def choose(request: Request, run: Run) -> tuple[Layout, str]:
  """The layout, and where it is from.

  Raises:
    InputError: the layout that was asked for doesn't work, or none fits; the
      message names one that does.
  """
  if request.layout:
    return _asked(request, run), ASKED
  if (
    run.model.uses_experts
    and request.devices % 1024 == 0
    and run.device.domain_size == _PAPER_DOMAIN
  ):
    layout = layout_lib.paper(request.devices)
    layout = layout.computed_as(request.config.compute)
    if not _wrong(dataclasses.replace(run, layout=layout)):
      return layout, PAPER
  return search(request, 1)[0].layout, CHEAPEST


def search(request: Request, most: int) -> list[search_lib.Found]:
  """The cheapest layouts that fit, at most `most` of them.

  Raises:
    InputError: none fits.
  """
  request.check()
  found = search_lib.cheapest(request.run(), request.devices, most)
  if not found:
    raise _nothing_fits(request)
  return found


def _asked(request: Request, run: Run) -> Layout:
  flag = request.layout_flag or f'--layout={request.layout}'
  try:
    layout = layout_lib.parse(request.layout, request.devices)
    layout = layout.computed_as(request.config.compute)
  except layout_lib.NoMultiple as error:
    near = _nearest_devices(request, run, error.unit)
    advice = f'; --devices={near} works' if near else ''
    if not near and search_lib.any_fits(run, request.devices):
      advice = '; without --layout a plan finds one'
    raise InputError(
      str(error).replace(f'--layout={request.layout}', flag) + advice
    ) from error
  except InputError as error:
    text = str(error).replace(f'--layout={request.layout}', flag)
    raise InputError(text) from error
  asked = dataclasses.replace(run, layout=layout)
  wrong = _wrong(asked)
  if not wrong:
    return layout
  near = search_lib.nearest(asked, request.devices)
  if near is None:
    raise InputError(f'{flag}: {wrong}; {_nothing_fits(request)}')
  raise InputError(
    f'{flag}: {wrong}; the nearest that fits is --layout={near.describe()}'
  )


def _nearest_devices(request: Request, run: Run, unit: int) -> int:
  """The nearest number of devices that the layout works on; 0: none is near."""
  middle = request.devices // unit
  multiples = range(max(middle - _NEAR, 1), middle + _NEAR)
  for count in sorted(
    (unit * n for n in multiples), key=lambda n: abs(n - request.devices)
  ):
    layout = layout_lib.parse(request.layout, count)
    if not _wrong(dataclasses.replace(run, layout=layout)):
      return count
  return 0


def _wrong(run: Run) -> str:
  """What is wrong with a run's layout, memory included; '' if nothing is."""
  wrong = layout_lib.problem(
    run.layout, run.model, run.device, run.batch_size, run.sequence_length
  )
  if wrong:
    return wrong
  needed, room = run.training_memory().total, memory.room(run.device)
  if needed > room:
    return (
      f'it takes {needed / 1e9:.1f} GB, and a plan uses {room / 1e9:g} of the '
      f'{run.device.memory_bytes / 1e9:g} of a {run.device.name}'
    )
  return ''


def _nothing_fits(request: Request) -> InputError:
  """Says why nothing fits, and names a number of devices that works."""
  run, devices = request.run(), request.devices
  name, room = request.device.name, memory.room(request.device)
  least = search_lib.leanest(run, devices)
  divisible = dataclasses.replace(run, batch_size=run.batch_size * devices)
  if math.isfinite(least):
    why = (
      f'no layout of so many {name} holds this run: the leanest takes '
      f'{least / 1e9:.1f} GB, and a plan uses {room / 1e9:g}'
    )
  elif search_lib.any_fits(divisible, devices):
    why = (
      f'no layout spreads a batch of {run.batch_size} sequences over so many '
      'devices'
    )
  else:
    why = f'no layout spreads this run over so many {name}'
  powers = [2**n for n in range(_MOST_POWER + 1)]
  if not request.device.network_bandwidth:
    powers = [1]
  more = [n for n in powers if n > devices]
  fewer = [n for n in reversed(powers) if n < devices]
  for other in more + fewer if math.isfinite(least) else fewer + more:
    if search_lib.any_fits(run, other):
      return InputError(f'--devices={devices}: {why}; --devices={other} works')
  return InputError(
    f'--devices={devices}: {why}, and no other number up to {powers[-1]} '
    'works; try another --hardware or --config.data.batch_size'
  )
