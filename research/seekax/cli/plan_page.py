"""A plan as an HTML page, made with the template and plots of all pages."""

from collections.abc import Mapping, Sequence

from seekax.cli import plan_text
from seekax.planning import memory, parameters, serving
from seekax.planning.plan import Plan
from seekax.planning.search import Found
from seekax.report import plots
from seekax.report.page import Grid, Page, Section, Tile


def page(plans: Mapping[str, Plan], found: Sequence[Found] = ()) -> Page:
  """Makes the page of the first plan.

  Args:
    plans: plans by name; the first is compared with the others.
    found: the layouts of a search, the cheapest first.
  """
  name, plan = next(iter(plans.items()))
  request, step = plan.request, plan.step
  counts = parameters.count_parameters(plan.run.model)
  device = plan.run.device.name
  sections = [_step(plan), _cost(plan), _serving(plan)]
  if found:
    sections.insert(0, _searched(plan, found))
  if len(plans) > 1:
    sections.insert(0, _beside(plans))
  return Page(
    kind='seekax plan',
    title=name,
    finding=(
      f'{plan_text.tokens(request)} take '
      f'{plan_text.short(plan.hours["total"])} {device} hours, '
      f'{plan_text.money(plan.dollars["total"])} at '
      f'{plan_text.money(request.price)} an hour: {plan.days:,.1f} days on '
      f'{request.devices:,} of them.'
    ),
    remark=(
      'Predicted by a model of time: docs/planning.md says what its constants '
      'were fitted on, and what it misses.'
    ),
    tiles=[
      Tile(
        'Dollars',
        plan_text.money(plan.dollars['total']),
        f'{plan_text.money(request.price)} per device hour',
      ),
      Tile(
        'Parameters',
        plan_text.short(counts.total),
        f'{plan_text.short(counts.activated_without_embedding)} activated',
      ),
      Tile(
        'Tokens/s per device',
        f'{step.tokens_per_second_per_device:,.0f}',
        f'{plan.mfu:.1%} of the bfloat16 peak',
      ),
      Tile(
        'Memory of a device',
        f'{plan.memory.total / 1e9:.3g} GB',
        f'of {plan.run.device.memory_bytes / 1e9:g}',
      ),
    ],
    sections=sections,
    footer='Made by seekax plan.',
  )


def _step(plan: Plan) -> Section:
  phases = {
    text: getattr(plan.step, phase) for phase, text in plan_text.PHASES.items()
  }
  parts = {
    text: getattr(plan.memory, part) / 1e9
    for part, text in plan_text.PARTS.items()
    if part != 'total'
  }
  sent = plan.traffic_bytes_per_token()
  return Section(
    'Where time and memory go',
    f'Layout: {plan.run.layout.describe()} ({plan.layout_from}), in '
    f'{plan.run.precision}. {_of_extensions(plan)}'.strip(),
    figures=[
      plots.stacked_bars('A step, seconds', 'seconds', {'step': phases}),
      plots.stacked_bars('Memory of the fullest device, GB', 'GB', {'': parts}),
    ],
    grids=[
      Grid(
        'Traffic per trained token',
        (
          '',
          f'KB over {plan_text.LINKS[0]}, between nodes',
          f'KB over {plan_text.LINKS[1]}, within one',
        ),
        [
          (
            plan_text.TRAFFIC[kind],
            f'{one.network / 1e3:,.1f}',
            f'{one.link / 1e3:,.1f}',
          )
          for kind, one in sent.items()
        ],
        remark='KB sent by all devices together, one direction of each link',
      )
    ]
    if sent
    else (),
  )


def _of_extensions(plan: Plan) -> str:
  """Names the stages of extension that don't fit in memory in this layout."""
  room = memory.room(plan.run.device)
  lacking = [
    f'{plan_text.STAGES[stage]} ({needed.total / 1e9:.1f} GB)'
    for stage, needed in plan.longer.items()
    if needed.total > room
  ]
  if not lacking:
    return ''
  return f'Its memory is too small for the {" and the ".join(lacking)}.'


def _cost(plan: Plan) -> Section:
  return Section(
    'What it costs',
    grids=[
      Grid(
        'Device hours and dollars by stage',
        ('stage', 'device hours', 'dollars'),
        [
          (
            text,
            plan_text.few(plan.hours[stage]),
            plan_text.money(plan.dollars[stage]),
          )
          for stage, text in plan_text.STAGES.items()
        ],
        marked=list(plan_text.STAGES).index('total'),
      )
    ],
  )


def _searched(plan: Plan, found: Sequence[Found]) -> Section:
  head, *rows = plan_text.search_rows(plan.request, found)
  return Section(
    'Layouts that were found',
    'The cheapest that fit, by the same model of time and memory.',
    grids=[
      Grid(
        'Pre-training by layout',
        ('layout', *head[1:]),
        [
          (item.layout.describe(), *row[1:])
          for item, row in zip(found, rows, strict=True)
        ],
        marked=0,
      )
    ],
  )


def _serving(plan: Plan) -> Section:
  service, price = plan.service, plan.request.price
  if not service:
    return Section('Serving', f'None: {plan_text.why_not_served(plan)}.')
  rates = {
    f'input, {service.prefill_devices} devices': (
      service.prefill_tokens_per_second
    ),
    f'output, {service.decode_devices} devices': (
      service.decode_tokens_per_second
    ),
  }
  return Section(
    'Serving',
    f'At full load: {service.requests} requests at once on a device, each with '
    f'{service.cache_bytes_per_request / 1e6:,.0f} MB of cache and '
    f'{service.tokens_per_second_per_user:.1f} tokens per second.',
    grids=[
      Grid(
        'Rates',
        ('unit', 'tokens/s per device', 'dollars per million'),
        [
          (
            kind,
            f'{rate:,.0f}',
            plan_text.money(serving.dollars_per_million(rate, price)),
          )
          for kind, rate in rates.items()
        ],
      )
    ],
  )


def _beside(plans: Mapping[str, Plan]) -> Section:
  stages = {
    name: {'pre-training': plan.dollars['pretraining'] / 1e6}
    for name, plan in plans.items()
  }
  alike: dict[tuple[str, str], list[str]] = {}
  for name, plan in plans.items():
    key = plan.layout_from, plan.run.precision
    alike.setdefault(key, []).append(name)
  return Section(
    'Beside others',
    ' '.join(
      f'Layout {layout_from}, in {precision}: {", ".join(names)}.'
      for (layout_from, precision), names in alike.items()
    ),
    figures=[
      plots.stacked_bars('Pre-training, millions of dollars', 'M$', stages),
      plots.stacked_bars(
        'Arithmetic per trained token, GFLOP',
        'GFLOP',
        {
          name: {'model FLOP': plan.flops_per_token / 1e9}
          for name, plan in plans.items()
        },
      ),
    ],
    grids=[_side_by_side(plans)],
  )


def _side_by_side(plans: Mapping[str, Plan]) -> Grid:
  """All figures of the comparison, one plan per column."""
  head, *rows = plan_text.comparison_rows(plans)
  return Grid('Figure by figure', head, rows)
