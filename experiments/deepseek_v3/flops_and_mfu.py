"""Whether one way of counting FLOP explains the TFLOP/s of several projects.

Claim: 6 FLOP per activated parameter (the input embedding left out, the head
included) and the lower triangle of attention give the arithmetic of a trained
token: DeepSeek's own figures, and what other projects get when they divide
their TFLOP/s by their tokens per second.
Paper: "Insights into DeepSeek-V3" (arXiv 2505.09343), tables 2 and 4;
DeepSeekMoE (2401.06066), section 5; performance pages of Megatron-Bridge and
NeMo AutoModel. The identities within table 4 (385 and 432 TFLOP/s, MFU, tokens
per day, seconds per step) are in cost_and_parameters.py; that the count equals
the compiler's is tested in tests/planning/test_flops.py.
Command: python experiments/deepseek_v3/flops_and_mfu.py
Cost: a second of a CPU.

Reproduced: within 1 %. Refuted: beyond. DeepSeekMoE counts the whole square of
attention, which we found by looking for its numbers; the rows of NVIDIA's
projects are their TFLOP/s over their tokens per second.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import sys

from absl import app
from matplotlib import axes as axes_lib

from seekax.configuration.model import ModelConfig

# Scripts are run by path; the modules that they share lie one folder up.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import deviation_plot
from seekax.configuration import presets
from seekax.planning import flops, hardware
import verdicts

_LENGTH = 4096
_TOLERANCE = 0.01
# (name, model, TFLOP/s, tokens/s per GPU, whether MTP is counted)
_PUBLISHED = (
  ('Megatron FP8', presets.v3_671b(), 338, 1297, True),
  ('Megatron BF16', presets.v3_671b(), 276, 1061, True),
  ('Automodel, 256 GPUs', presets.v3_671b(), 250, 1002, False),
  ('Automodel, 1,024 GPUs', presets.v3_671b(), 216, 865, False),
  ('Automodel Kimi-K2', presets.kimi_k2(), 189, 924, False),
)


def deepseek_7b() -> ModelConfig:
  """DeepSeek LLM 7B by its public shapes."""
  return dataclasses.replace(
    presets.llama3_8b(),
    vocab_size=102400,
    num_layers=30,
    mlp_dim=11008,
    attention='mha',
    num_kv_heads=0,
  )


def deepseek_moe_16b() -> ModelConfig:
  """DeepSeekMoE 16B: V2-Lite's experts in 28 layers with plain MHA."""
  return dataclasses.replace(
    presets.v2_lite(),
    num_layers=28,
    attention='mha',
    kv_latent_dim=0,
    nope_head_dim=0,
    rope_head_dim=128,
  )


def llama2_7b() -> ModelConfig:
  """Llama 2 7B by its public shapes."""
  return dataclasses.replace(deepseek_7b(), vocab_size=32000, num_layers=32)


def _gflop(model, with_mtp: bool = False, causal: bool = True) -> float:
  per_token = flops.training_flops_per_token(model, _LENGTH, with_mtp, causal)
  return per_token / 1e9


def all_claims() -> list[verdicts.Claim]:
  """GFLOP per token from the figures of every project."""
  claims = [
    verdicts.Claim(
      f'{name}: GFLOP per token',
      '',
      f'{1e3 * tflops / tokens:.1f}',
      lambda model=model, mtp=mtp: _gflop(model, mtp),
      verdicts.share(f'{1e3 * tflops / tokens:.1f}', _TOLERANCE),
      f'{tflops} TFLOP/s over {tokens:,} tokens/s, '
      + ('with MTP' if mtp else 'without MTP'),
    )
    for name, model, tflops, tokens, mtp in _PUBLISHED
  ]
  for name, model, paper in (
    ('DeepSeekMoE 16B', deepseek_moe_16b(), '74.4'),
    ('DeepSeek 7B', deepseek_7b(), '183.5'),
    ('Llama 2 7B', llama2_7b(), '187.9'),
  ):
    claims.append(
      verdicts.Claim(
        f'{name}: TFLOP per 4,096 tokens',
        '',
        paper,
        lambda model=model: _gflop(model, causal=False) * _LENGTH / 1e3,
        verdicts.share(paper, _TOLERANCE),
        'the whole square; post hoc',
        post_hoc=True,
      )
    )
  return claims


def draw(rows: list[verdicts.Row], path: pathlib.Path) -> None:
  """The MFU of every project by one count, and all deviations."""
  deviation_plot.save(
    rows,
    path,
    _draw_mfu,
    'One count of FLOP explains the TFLOP/s of three projects',
    height=5,
    legend='lower right',
  )


def _draw_mfu(axes: axes_lib.Axes) -> None:
  peak = hardware.DEVICES['h100'].peak_flops
  entries = [('DeepSeek-V3, 2,048 H800', presets.v3_671b(), 1543)]
  entries += [(name, model, rate) for name, model, _, rate, _ in _PUBLISHED]
  for place, (_, model, rate) in enumerate(entries):
    mfu = 100 * flops.model_flops_utilization(1e9 * _gflop(model), rate, peak)
    axes.barh(place, mfu, height=0.6, color='#0072B2')
    axes.text(mfu + 0.5, place, f'{mfu:.1f} %', va='center')
  axes.set_yticks(range(len(entries)), [name for name, _, _ in entries])
  axes.set_ylim(len(entries) - 0.5, -0.5)
  axes.set_xlim(0, 48)
  axes.set_xlabel('of the bfloat16 peak, MTP not counted, %')
  axes.set_title('MFU by the same rule for all', loc='left')


def main(argv: Sequence[str]) -> None:
  verdicts.main(argv, all_claims, draw)


if __name__ == '__main__':
  app.run(main)
