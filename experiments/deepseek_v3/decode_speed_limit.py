"""How fast a token can come when only the exchange with experts takes time.

Claim: 32 tokens to 9 experts each cost 120.96 us per exchange over InfiniBand,
so that 61 layers of two micro-batches take 14.76 ms, 67 tokens per second; at
900 GB/s 6.72 us, 0.82 ms and about 1,200.
Paper: "Insights into DeepSeek-V3" (arXiv 2505.09343), section 2.3.2.
Command: python experiments/deepseek_v3/decode_speed_limit.py
Cost: a second of a CPU.

Reproduced: within half a unit of the last digit printed, or 2 % of "about
1,200". Refuted: anything beyond. The paper's "7K" is 7,000 in its sum, not the
width of 7,168. Some rows take the model as it is and ask what the
simplification hides: width 7,168, 58 layers of experts and not 61, 40 GB/s as
the exchange reaches. They are inconclusive, since nobody claims them. All rows
assume one expert per device, for which the 72 devices of the 900 GB/s links are
too few (256 experts).
"""

from collections.abc import Sequence
import pathlib
import sys

from absl import app
from matplotlib import axes as axes_lib

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import deviation_plot
from seekax.configuration import presets
from seekax.planning import serving
import verdicts

_TOKENS, _DESTINATIONS, _WIDTH, _LAYERS = 32, 9, 7000, 61
_INFINIBAND, _NVLINK = 50e9, 900e9


def _exchange(bandwidth: float, width: int = _WIDTH) -> float:
  """Seconds of an exchange."""
  return serving.decode_exchange_seconds(
    _TOKENS, _DESTINATIONS, width, bandwidth
  )


def _rate(bandwidth: float, width: int = _WIDTH, layers: int = _LAYERS):
  """Tokens per second that a user sees."""
  return serving.decode_limit(_exchange(bandwidth, width), layers)


def all_claims() -> list[verdicts.Claim]:
  """The paper's numbers, then those of the model as it is."""
  v3 = presets.v3_671b()
  claims = []
  for name, bandwidth, micro, per_layer, step in (
    ('50 GB/s', _INFINIBAND, '120.96', '241.92', '14.76'),
    ('900 GB/s', _NVLINK, '6.72', '13.44', '0.82'),
  ):
    claims += [
      verdicts.printed(
        f'{name}: one exchange',
        'us',
        micro,
        lambda b=bandwidth: 1e6 * _exchange(b),
      ),
      verdicts.printed(
        f'{name}: a layer, two micro-batches',
        'us',
        per_layer,
        lambda b=bandwidth: 2e6 * _exchange(b),
      ),
      verdicts.printed(
        f'{name}: a token',
        'ms',
        step,
        lambda b=bandwidth: 1e3 / _rate(b),
      ),
    ]
  claims += [
    verdicts.printed(
      '50 GB/s: tokens per second',
      '',
      '67',
      lambda: _rate(_INFINIBAND),
      'the paper cuts 67.76, it does not round',
    ),
    verdicts.Claim(
      '900 GB/s: tokens per second',
      '',
      '1200',
      lambda: _rate(_NVLINK),
      verdicts.share('1200', 0.02),
      'about 1,200 in the paper; 2 %',
    ),
  ]
  for note, arguments in (
    ('width 7,168', (_INFINIBAND, v3.embed_dim, _LAYERS)),
    ('58 layers of experts', (_INFINIBAND, _WIDTH, v3.num_expert_layers)),
    ('40 GB/s', (0.8 * _INFINIBAND, _WIDTH, _LAYERS)),
    (
      'all three',
      (0.8 * _INFINIBAND, v3.embed_dim, v3.num_expert_layers),
    ),
  ):
    claims.append(
      verdicts.Claim(
        f'tokens per second, {note}',
        '',
        '67',
        lambda a=arguments: _rate(*a),
        verdicts.half_digit('67'),
        'claimed by nobody: what the simplification hides',
        claimed=False,
      )
    )
  return claims


def draw(rows: list[verdicts.Row], path: pathlib.Path) -> None:
  """Rates against the paper's."""
  deviation_plot.save(
    rows,
    path,
    lambda axes: _draw_rates(axes, rows),
    'The limit of decoding follows from its formula; with the real width it '
    'is lower',
    height=5.5,
    legend='upper left',
  )


def _draw_rates(axes: axes_lib.Axes, rows: list[verdicts.Row]) -> None:
  shown = [row for row in rows if row.paper == '67']
  for place, row in enumerate(shown):
    color = deviation_plot.COLORS[row.verdict]
    axes.barh(place, row.ours, height=0.6, color=color)
    axes.text(row.ours + 1, place, f'{row.ours:.1f}', va='center')
  axes.axvline(67, color='#606060', linewidth=0.8)
  axes.set_yticks(range(len(shown)), [row.name for row in shown])
  axes.set_ylim(len(shown) - 0.5, -0.5)
  axes.set_xlim(0, 90)
  axes.set_xlabel('tokens per second of a user')
  axes.set_title('Assumptions, one by one (line: the paper)', loc='left')


def main(argv: Sequence[str]) -> None:
  verdicts.main(argv, all_claims, draw)


if __name__ == '__main__':
  app.run(main)
