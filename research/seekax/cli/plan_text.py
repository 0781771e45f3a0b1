"""A plan as text: tables for a terminal, with rounded figures."""

from collections.abc import Mapping, Sequence

from seekax.planning import (
  hardware,
  memory,
  parameters,
  serving,
  step_traffic,
)
from seekax.planning.plan import Plan
from seekax.planning.request import Request
from seekax.planning.search import Found

PHASES = {
  'forward': 'forward alone',
  'backward': 'backward alone',
  'weight': 'weight gradients alone',
  'pair': 'forward and backward, overlapped',
  'bubble': 'bubble',
  'optimizer': 'optimizer, data parallel',
}
# Parts of these phases, without the bubble, that wait for communication.
WAITS = {
  'exchange': 'exposed exchange of tokens',
  'tensor': 'tensor and context ranks, always exposed',
  'fsdp': 'exposed fsdp weights and gradients',
}
TRAFFIC = {
  'dispatch': 'tokens to experts',
  'combine': 'tokens back',
  'tensor': 'tensor ranks',
  'context': 'context ranks',
  'pipeline': 'pipeline stages',
  'fsdp_weights': 'fsdp weights, gathered twice per micro-batch',
  'fsdp_gradients': 'fsdp gradients, scattered per micro-batch',
  'data': 'gradients and weights, once per step',
}
# Links between nodes, and links within a node.
LINKS = ('InfiniBand', 'NVLink')
STAGES = {
  'pretraining': 'pre-training',
  'extension_32k': 'extension to 32K',
  'extension_128k': 'extension to 128K',
  'posttraining': 'post-training (an input)',
  'total': 'total',
}
PARTS = {
  'parameters': 'parameters',
  'optimizer': 'optimizer and masters',
  'gradients': 'gradients',
  'activations': 'activations',
  'temporaries': 'temporaries',
  'total': 'total',
}


def short(number: float) -> str:
  """A number in short form: 950, 2.9k, 15M, 671B, 14.8T."""
  for power, letter in ((12, 'T'), (9, 'B'), (6, 'M'), (3, 'k')):
    if abs(number) >= 0.9995 * 10**power:
      return f'{float(f"{number / 10**power:.4g}"):.12g}{letter}'
  return f'{float(f"{number:.4g}"):g}'


def money(amount: float) -> str:
  """Dollars; thousands and millions in short form."""
  if amount >= 1e6:
    return f'${amount / 1e6:,.3f}M'
  if amount >= 1e3:
    return f'${amount / 1e3:,.1f}K'
  return f'${amount:,.2f}' if amount >= 1 else f'${amount:.3g}'


def few(number: float) -> str:
  """Three digits after the point, fewer for large numbers, more for small."""
  if abs(number) >= 1000:
    return f'{number:,.0f}'
  return f'{number:.3f}' if abs(number) >= 0.01 else f'{number:.3g}'


def columns(rows: Sequence[Sequence[str]]) -> str:
  """Aligned columns: the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def table(name: str, plan: Plan) -> str:
  """All tables of one plan."""
  parts = [
    ('Model', _model(plan)),
    ('Memory of the fullest device, GB', _memory(plan)),
    ('Traffic per trained token, KB sent by all devices', _traffic(plan)),
    ('A step by phase', _phases(plan)),
    ('Training', _training(plan)),
    ('Serving', _serving(plan)),
  ]
  return '\n\n'.join(
    [_head(name, plan)]
    + [f'{title}\n{columns(rows)}' for title, rows in parts if rows]
  )


Row = tuple[str, ...]


def comparison_rows(plans: Mapping[str, Plan]) -> list[Row]:
  """Plans in columns, the first compared with the others; names come first."""
  first = next(iter(plans.values()))
  rows: list[Row] = [('', *plans)]
  figures = {
    'parameters': lambda p: short(_counts(p).total),
    'activated': lambda p: short(_counts(p).activated_without_embedding),
    'GFLOP per token': lambda p: f'{p.flops_per_token / 1e9:,.1f}',
    'cache, bytes per token': lambda p: (
      f'{p.as_json()["cache_bytes_per_token"]:,.0f}'
    ),
    'layout': lambda p: p.layout_from,
    'precision': _precision,
    'tokens/s per device': lambda p: f'{_rate(p):,.0f}',
    'MFU': lambda p: f'{p.mfu:.1%}',
    'hours, pre-training': lambda p: short(p.hours['pretraining']),
    'dollars, pre-training': lambda p: money(p.dollars['pretraining']),
    'against the first': lambda p: (
      f'{p.hours["pretraining"] / first.hours["pretraining"]:.2f}x'
    ),
    'dollars per 1M output tokens': lambda p: (
      money(_output_price(p)) if p.service else '-'
    ),
  }
  rows += [
    (text, *(figure(plan) for plan in plans.values()))
    for text, figure in figures.items()
  ]
  return rows


def comparison(plans: Mapping[str, Plan]) -> str:
  """What is compared, the figures, and every layout."""
  first = next(iter(plans.values()))
  layouts = [(name, plan.run.layout.describe()) for name, plan in plans.items()]
  notes = [
    f'{name}: no price of output, {why_not_served(plan)}'
    for name, plan in plans.items()
    if not plan.service
  ]
  request = first.request
  return '\n\n'.join(
    [
      f'{tokens(request)} on {request.devices:,} '
      f'{first.run.device.name} at {money(request.price)} per hour',
      columns(comparison_rows(plans)),
      'Layouts\n' + '\n'.join(f'{name}: {text}' for name, text in layouts),
      *notes,
    ]
  )


def why_not_served(plan: Plan) -> str:
  """Says why a plan has no service."""
  most = serving.largest_unit(plan.run.model, plan.run.device)
  return (
    f'its weights and a request find no room on {most} '
    f'{plan.run.device.name}, the largest unit that is planned'
  )


def _precision(plan: Plan) -> str:
  return plan.run.precision + (' (no fp8)' if plan.lacks_fp8 else '')


def tokens(request: Request) -> str:
  """The number of tokens, and its origin if it wasn't given."""
  note = f' ({request.tokens_from})' if request.tokens_from else ''
  return f'{short(request.tokens)} tokens{note}'


def search_rows(request: Request, found: Sequence[Found]) -> list[Row]:
  """A head, the cheapest layout and the next cheapest ones."""
  data = request.config.data
  step_tokens = data.batch_size * data.sequence_length
  rows: list[Row] = [
    ('', 'hours', 'dollars', 's/step', 'tokens/s/device', 'GB')
  ]
  for place, item in enumerate(found, 1):
    rate = step_tokens / item.seconds / request.devices
    hours = request.tokens / rate / 3600
    rows.append(
      (
        f'{place}',
        short(hours),
        money(hours * request.price),
        f'{item.seconds:.3f}',
        f'{rate:,.0f}',
        f'{item.memory / 1e9:.1f}',
      )
    )
  return rows


def search_table(request: Request, found: Sequence[Found]) -> str:
  """`search_rows` as text."""
  rows = search_rows(request, found)
  layouts = [f'{i} {item.layout.describe()}' for i, item in enumerate(found, 1)]
  return columns(rows) + '\n\n' + '\n'.join(layouts)


def _counts(plan: Plan) -> parameters.ParameterCounts:
  return parameters.count_parameters(plan.run.model)


def _rate(plan: Plan) -> float:
  return plan.step.tokens_per_second_per_device


def _output_price(plan: Plan) -> float:
  assert plan.service
  return serving.dollars_per_million(
    plan.service.decode_tokens_per_second, plan.request.price
  )


def _head(name: str, plan: Plan) -> str:
  request, device = plan.request, plan.run.device
  lines = [
    f'{name}: {tokens(request)} on {request.devices:,} {device.name} in '
    f'{plan.run.precision}, {money(request.price)} per device hour',
    f'layout: {plan.run.layout.describe()} ({plan.layout_from})',
  ]
  if plan.lacks_fp8:
    lines.append(
      f'{device.name} has no FP8: planned in {plan.run.precision}, memory and '
      'dispatch too'
    )
  return '\n'.join(lines)


def _model(plan: Plan) -> list[Row]:
  counts, found = _counts(plan), plan.as_json()
  rows = [
    ('parameters', f'{counts.total:,}'),
    ('activated, with both tables', f'{counts.activated:,}'),
    (
      'activated, without the embedding',
      f'{counts.activated_without_embedding:,}',
    ),
  ]
  if counts.mtp:
    rows.append(('MTP modules, beside these', f'{counts.mtp:,}'))
  return [
    *rows,
    ('GFLOP per trained token', few(plan.flops_per_token / 1e9)),
    ('cache, bytes per token', f'{found["cache_bytes_per_token"]:,.0f}'),
  ]


def _memory(plan: Plan) -> list[Row]:
  device = plan.run.device
  rows: list[Row] = [
    (text, few(getattr(plan.memory, part) / 1e9))
    for part, text in PARTS.items()
  ]
  rows += [
    ('kept for CUDA, NCCL and gaps', few(hardware.RESERVED_BYTES / 1e9)),
    ('of the device', few(device.memory_bytes / 1e9)),
  ]
  for stage, needed in plan.longer.items():
    enough = needed.total <= memory.room(device)
    rows.append(
      (
        f'total in the {STAGES[stage]}, this layout'
        + ('' if enough else ' (does not fit)'),
        few(needed.total / 1e9),
      )
    )
  return rows


def _traffic(plan: Plan) -> list[Row]:
  sent = plan.traffic_bytes_per_token()
  if not sent:
    return []
  named = [(TRAFFIC[name], one) for name, one in sent.items()]
  padded = step_traffic.exchange_of_program(plan.run)
  if padded.network + padded.link:
    place = 1 + list(sent).index('combine')
    named.insert(place, ('  both, as parallel/exchange.py sends them', padded))
  rows: list[Row] = [
    ('', f'{LINKS[0]}, between nodes', f'{LINKS[1]}, within one')
  ]
  rows += [
    (text, f'{one.network / 1e3:,.1f}', f'{one.link / 1e3:,.1f}')
    for text, one in named
  ]
  return rows


def _phases(plan: Plan) -> list[Row]:
  step = plan.step
  rows: list[Row] = [('', 'seconds', 'share')]
  for phase, text in PHASES.items():
    seconds = getattr(step, phase)
    if seconds:
      rows.append((text, few(seconds), f'{seconds / step.seconds:.1%}'))
  rows.append(('total', few(step.seconds), ''))
  for part, text in WAITS.items():
    seconds = getattr(step, part)
    if seconds:
      share = f'{seconds / step.seconds:.1%}'
      rows.append((f'  of it: {text}', few(seconds), share))
  if step.hidden:
    rows.append(('  hidden behind arithmetic', few(step.hidden), ''))
  return rows


def _training(plan: Plan) -> list[Row]:
  rows: list[Row] = [('', 'device hours', 'dollars')]
  rows += [
    (text, few(plan.hours[stage]), money(plan.dollars[stage]))
    for stage, text in STAGES.items()
    if plan.hours[stage]
  ]
  return rows + [
    ('days by the clock', few(plan.days), ''),
    ('tokens/s per device', f'{_rate(plan):,.1f}', ''),
    ('MFU, of the bfloat16 peak', f'{plan.mfu:.2%}', ''),
  ]


def _serving(plan: Plan) -> list[Row]:
  service = plan.service
  if not service:
    return [('none', why_not_served(plan))]
  price = plan.request.price
  return [
    ('', 'prefill', 'decoding'),
    (
      'devices of a unit',
      f'{service.prefill_devices}',
      f'{service.decode_devices}',
    ),
    (
      'tokens/s per device',
      f'{service.prefill_tokens_per_second:,.0f}',
      f'{service.decode_tokens_per_second:,.0f}',
    ),
    (
      'dollars per 1M tokens',
      *(
        money(serving.dollars_per_million(rate, price))
        for rate in (
          service.prefill_tokens_per_second,
          service.decode_tokens_per_second,
        )
      ),
    ),
    ('tokens/s of a user', '', f'{service.tokens_per_second_per_user:.1f}'),
    ('requests at once per device', '', f'{service.requests}'),
    (
      'cache per request, MB',
      '',
      f'{service.cache_bytes_per_request / 1e6:,.1f}',
    ),
  ]
