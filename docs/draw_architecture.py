"""Draws the architecture of a config as an SVG, every size taken from it.

python docs/draw_architecture.py        # writes docs/architecture.svg

The picture brings its own background and follows the reader's light or dark
setting, so that it can be read on any page. A test compares the committed file
with what this script draws.
"""

from collections.abc import Sequence
import pathlib
import runpy

from absl import app, flags

from seekax.configuration.config import from_config_dict
from seekax.configuration.model import ModelConfig
from seekax.planning.memory import cache_bytes_per_token
from seekax.planning.parameters import count_parameters

_CONFIG = flags.DEFINE_string('config', 'v3_671b', 'a file of configs/')
_TARGET = flags.DEFINE_string('target', '', "'' is docs/architecture.svg")
_TITLE = flags.DEFINE_string('title', 'DeepSeek-V3', 'heading')

_DOCS = pathlib.Path(__file__).resolve().parent
PICTURE = _DOCS / 'architecture.svg'
WIDTH, HEIGHT = 800, 648

# Kind of box: (fill, line) on light pages, then on dark ones.
_COLOURS = {
  'plain': ('#f1f3f6', '#8791a0', '#2b323c', '#8b96a6'),
  'mla': ('#e3f0f9', '#0072b2', '#123349', '#56b4e9'),
  'cache': ('#e0f4ec', '#00805d', '#103a2e', '#3fd0a4'),
  'moe': ('#fdeee3', '#c25300', '#462410', '#f0964f'),
  'mtp': ('#f3eaf6', '#87539b', '#36233f', '#cf9be2'),
  'panel': ('#ffffff', '#cfd6df', '#1d232b', '#434d5a'),
}
# Background, ink, muted ink, likewise.
_PAGE = (('#fafbfc', '#1b2430', '#54606f'), ('#161b22', '#e8edf3', '#a5b0be'))


def _style() -> str:
  """The style sheet: light colours, and dark ones where the reader asks."""

  def rules(first: int) -> str:
    page, ink, muted = _PAGE[first // 2]
    lines = [f'.page{{fill:{page}}}.zoom{{fill:{muted};opacity:.10}}']
    lines.append(f'.expert{{fill:{muted};opacity:.28}}.left{{fill:none}}')
    panel, moe = _COLOURS['panel'][first], _COLOURS['moe'][first + 1]
    lines.append(f'.kept{{fill:{panel};stroke:{moe}}}')
    lines += [f'text{{fill:{ink}}}.muted{{fill:{muted}}}']
    lines += [f'.flow{{stroke:{muted}}}.tip{{fill:{muted}}}']
    for kind, colours in _COLOURS.items():
      fill, line = colours[first : first + 2]
      lines.append(f'.{kind}{{fill:{fill};stroke:{line}}}')
      lines.append(f'.ink-{kind}{{fill:{line}}}')
    return ''.join(lines)

  return (
    '<style>text{font-family:system-ui,-apple-system,"Segoe UI",Helvetica,'
    'Arial,sans-serif;font-size:12px}.title{font-size:20px;font-weight:700}'
    '.name{font-weight:600;font-size:13px}.flow{fill:none;stroke-width:1.4}'
    f'{rules(0)}@media(prefers-color-scheme:dark){{{rules(2)}}}</style>'
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
    'markerWidth="7" markerHeight="7" orient="auto">'
    '<path class="tip" d="M0 .6 7.6 4 0 7.4z"/></marker></defs>'
  )


def _text(
  x: float, y: float, words: str, kind: str = '', anchor: str = 'middle'
) -> str:
  style = f' class="{kind}"' if kind else ''
  return (
    f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{style}>{words}</text>'
  )


def _rectangle(x: float, y: float, w: float, h: float, kind: str) -> str:
  return (
    f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" '
    'rx="7" stroke-width="1.4"/>'
  )


def _box(
  x: float, y: float, w: float, h: float, kind: str, *lines: str
) -> list[str]:
  """A box with centred lines, the first one its name."""
  first = y + h / 2 + 4.5 - 8 * (len(lines) - 1)
  return [_rectangle(x, y, w, h, kind)] + [
    _text(x + w / 2, first + 16 * i, line, '' if i else 'name')
    for i, line in enumerate(lines)
  ]


def _stack(
  x: float, y: float, w: float, h: float, kind: str, *lines: str
) -> list[str]:
  """A box that stands for several."""
  behind = [_rectangle(x + d, y - d, w, h, kind) for d in (8, 4)]
  return behind + _box(x, y, w, h, kind, *lines)


def _arrow(path: str, tip: bool = True) -> str:
  end = ' marker-end="url(#tip)"' if tip else ''
  return f'<path class="flow" d="{path}"{end}/>'


def _plus(x: float, y: float) -> list[str]:
  return [
    f'<circle class="plain" cx="{x:g}" cy="{y:g}" r="8" stroke-width="1.4"/>',
    _arrow(f'M{x - 4:g} {y:g}h8M{x:g} {y - 4:g}v8', tip=False),
  ]


def _trunk(model: ModelConfig) -> list[str]:
  """From tokens to the next token, down the left side."""
  x, w, middle = 28, 206, 131
  table = f'{model.vocab_size:,} × {model.embed_dim:,}'
  parts = [_text(middle, 98, 'tokens', 'muted')]
  parts += _box(x, 116, w, 44, 'plain', 'Embedding', table)
  plain = (f'{model.num_plain_layers} dense layers', 'attention, then a SwiGLU')
  if model.num_plain_layers == 1:
    plain = ('1 dense layer', *plain[1:])
  plain += (f'of width {model.mlp_dim:,}',)
  parts += _stack(x, 222, w, 70, 'mla', *plain)
  experts = (f'{model.num_expert_layers} expert layers', 'attention, then')
  routed = f'{model.experts_per_token} of {model.num_experts} experts'
  experts += (f'{routed} + {model.num_shared_experts} shared',)
  parts += _stack(x, 362, w, 70, 'moe', *experts)
  parts += _box(x, 506, w, 28, 'plain', 'Final norm')
  parts += _box(x, 560, w, 44, 'plain', 'Head', table)
  flows = ((103, 115), (160, 212), (292, 352), (432, 504), (534, 558))
  parts += [_arrow(f'M{middle} {top}V{end}') for top, end in flows]
  parts.append(_arrow(f'M{middle} 604v14'))
  parts.append(_text(middle, 632, 'next token', 'muted'))
  return parts


def _layer(model: ModelConfig) -> list[str]:
  """One expert layer, enlarged: the residual stream and what adds to it."""
  parts = ['<path class="zoom" d="M242 354 278 84V452L234 432z"/>']
  parts.append(_rectangle(278, 84, 494, 368, 'panel'))
  parts.append(_text(294, 107, 'One expert layer', 'name', 'start'))
  parts.append(_arrow('M302 118V440'))
  for norm, plus in ((160, 250), (324, 422)):
    parts.append(_text(314, norm - 5, 'norm', 'muted', 'start'))
    parts.append(_arrow(f'M302 {norm}H350'))
    parts.append(_arrow(f'M352 {plus}H312'))
    parts += _plus(302, plus)
  return parts + _attention(model) + _experts(model)


def _attention(model: ModelConfig) -> list[str]:
  """Multi-head latent attention, and what of it is cached."""
  rotary, heads = model.rope_head_dim, model.num_heads
  latent = model.kv_latent_dim
  parts = [_rectangle(352, 118, 404, 150, 'mla')]
  name = 'Multi-head latent attention'
  parts.append(_text(366, 138, name, 'name ink-mla', 'start'))
  query = f'query latent {model.query_latent_dim:,}'
  if not model.query_latent_dim:
    query = 'no query latent'
  for y, kind, words, heads_of in (
    (150, 'panel', query, 'queries'),
    (192, 'cache', f'latent {latent} + rotary {rotary}', 'keys, values'),
  ):
    parts += [_rectangle(366, y, 158, 26, kind), _text(445, y + 17, words)]
    parts += [_rectangle(542, y, 112, 26, 'panel')]
    parts += [_text(598, y + 17, f'{heads} {heads_of}')]
    parts += [_arrow(f'M524 {y + 13}h16'), _arrow(f'M654 {y + 13}h16')]
  parts += [_rectangle(672, 150, 72, 68, 'panel'), _text(708, 188, 'softmax')]
  total = int(cache_bytes_per_token(model))
  layers = model.num_layers
  cached = f'latent cache: {latent + rotary} values per token and layer'
  parts.append(_text(366, 238, cached, 'name ink-cache', 'start'))
  cached = f'{total:,} bytes per token over {layers} layers in bfloat16'
  parts.append(_text(366, 256, cached, '', 'start'))
  return parts


def _experts(model: ModelConfig) -> list[str]:
  """The router, the shared experts, and the routed ones in their groups."""
  parts = [_rectangle(352, 286, 404, 154, 'moe')]
  parts.append(_text(366, 306, 'Mixture of experts', 'name ink-moe', 'start'))
  affinity = (
    f'{model.router} + bias' if model.uses_router_bias else model.router
  )
  parts += _box(366, 318, 112, 44, 'panel', 'Router', affinity)
  shared = f'{model.num_shared_experts} shared'
  parts += _box(366, 384, 112, 44, 'panel', shared, 'for every token')
  parts.append(_arrow('M478 340H500'))
  parts += _squares(model, 502, 314, 242, 82)
  words = f'{model.experts_per_token} of {model.num_experts} experts'
  if model.num_expert_groups > 1:
    groups = f'{model.num_kept_groups} of {model.num_expert_groups} groups'
    words = f'{groups}, then {words}'
  parts.append(_text(623, 414, words))
  parts.append(_text(623, 430, 'for each token; none is dropped', 'muted'))
  return parts


def _squares(
  model: ModelConfig, x: float, y: float, w: float, h: float
) -> list[str]:
  """A square per expert; one token's choice is filled."""
  groups, size = model.num_expert_groups, model.num_experts
  size //= groups
  across = min(groups, 4)
  down = -(-groups // across)
  columns = next(
    n for n in range(1, size + 1) if n * n >= size * 2 and not size % n
  )
  rows = -(-size // columns)
  cell = min((w / across - 10) / columns, (h / down - 10) / rows, 14)
  kept = [i * groups // model.num_kept_groups for i in range(groups)]
  kept = kept[: model.num_kept_groups]
  chosen = {
    # Any choice does; this one looks like one.
    (kept[i % len(kept)], (5 + 11 * i + i * i) % size)
    for i in range(model.experts_per_token)
  }
  parts = []
  for group in range(groups):
    left = x + w / across * (group % across) + 2
    top = y + h / down * (group // across) + 2
    frame = 'kept' if group in kept else 'left'
    wide, high = cell * columns + 5, cell * rows + 5
    parts.append(
      f'<rect class="{frame}" x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" '
      f'height="{high:.1f}" rx="4"/>'
    )
    for expert in range(size):
      style = 'ink-moe' if (group, expert) in chosen else 'expert'
      across_by, down_by = cell * (expert % columns), cell * (expert // columns)
      parts.append(
        f'<rect class="{style}" x="{left + 3.2 + across_by:.1f}" '
        f'y="{top + 3.2 + down_by:.1f}" '
        f'width="{cell - 1.4:.1f}" height="{cell - 1.4:.1f}" rx="1"/>'
      )
  return parts


def _mtp(model: ModelConfig) -> list[str]:
  """The multi-token prediction module, from the final norm on."""
  parts = [_rectangle(278, 470, 494, 140, 'mtp')]
  name = 'Multi-token prediction module'
  if model.mtp_depth > 1:
    name = f'{model.mtp_depth} multi-token prediction modules'
  parts.append(_text(294, 493, name, 'name ink-mtp', 'start'))
  parts.append(_text(758, 493, 'the token after the next', 'muted', 'end'))
  parts += _box(292, 506, 118, 28, 'panel', 'hidden state')
  parts += _box(292, 550, 118, 44, 'panel', 'embedding', 'of the next token')
  widths = f'{2 * model.embed_dim:,} to {model.embed_dim:,}'
  parts += _box(434, 522, 122, 44, 'panel', 'Projection', widths)
  layer = 'expert layer' if model.uses_experts else 'dense layer'
  parts += _box(580, 522, 84, 44, 'panel', 'one', layer)
  parts += _box(688, 522, 70, 44, 'panel', 'Head', 'shared')
  parts += [_arrow('M234 520H290'), _arrow('M723 522V501')]
  parts += [_arrow('M410 520H420V537H432'), _arrow('M410 572H420V551H432')]
  return parts + [_arrow(f'M{x} 544h22') for x in (556, 664)]


def _count(number: int) -> str:
  name, unit = ('billion', 1e9) if number >= 1e9 else ('million', 1e6)
  return f'{number / unit:.1f} {name}'


def draw(model: ModelConfig, title: str) -> str:
  """The picture, as the text of an SVG file."""
  counts = count_parameters(model)
  sizes = f'{_count(counts.total)} parameters, '
  sizes += f'{_count(counts.activated)} of them per token'
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    f'width="{WIDTH}" height="{HEIGHT}" role="img">',
    f'<title>The architecture of {title}</title>',
    _style(),
    f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="12"/>',
    _text(28, 42, title, 'title', 'start'),
    _text(28, 64, sizes, 'muted', 'start'),
    *_trunk(model),
    *_layer(model),
  ]
  if model.mtp_depth:
    parts += _mtp(model)
  return '\n'.join([*parts, '</svg>']) + '\n'


def load(name: str) -> ModelConfig:
  """The model of a file of configs/.

  Raises:
    UsageError: it has no latent attention or no experts, which the picture is
      about.
  """
  path = _DOCS.parent / 'configs' / f'{name}.py'
  model = from_config_dict(runpy.run_path(str(path))['get_config']()).model
  if model.attention != 'mla' or not model.num_expert_layers:
    raise app.UsageError(f'--config={name} has no MLA or no experts; try demo')
  return model


def main(argv: Sequence[str]) -> None:
  """Writes the picture."""
  del argv
  target = pathlib.Path(_TARGET.value or PICTURE)
  target.write_text(draw(load(_CONFIG.value), _TITLE.value))


if __name__ == '__main__':
  app.run(main)
