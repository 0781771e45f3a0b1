"""Published figures of training and serving, and how the planner predicts them.

The constants of the model of time are fitted on three sources: the phases of
V3's step (insights_table_4.py), Megatron's bfloat16 row, and the hours of Llama
3.1 405B. All other rows are held out.

A row is marked as `in_sight` if the model of time was changed after a first
look at it.
"""

from collections.abc import Callable
import dataclasses

from insights_table_4 import MPFT
from planner import runs
from seekax.configuration import presets
from seekax.planning import hardware, price, serving, step_time
from seekax.planning.hardware import Constants
from seekax.planning.run import Run

_SECONDS_PER_HOUR = 3600.0
MEGATRON_BF16 = 1061  # tokens/s per H100
LLAMA_405B_HOURS = 30.84e6
_EXTENSION_STEPS = 1000  # per stage (DeepSeek-V3, section 4.3)


@dataclasses.dataclass(frozen=True)
class Published:
  """A published figure and how it is predicted.

  Attributes:
    name: the row's name.
    unit: the figure's unit.
    value: the figure as published.
    predict: gives our figure from the constants.
    fitted: whether the constants were fitted on the figure.
    note: what a reader of the row has to know.
    in_sight: not fitted, yet the figure was known; `note` says why.
    run: the run that is predicted, if it is training.
    remat_known: whether the source says what is computed again.
  """

  name: str
  unit: str
  value: float
  predict: Callable[[Constants], float]
  fitted: bool = False
  note: str = ''
  in_sight: bool = False
  run: Run | None = None
  remat_known: bool = True


def rate(run: Run) -> Callable[[Constants], float]:
  """Tokens per second and device, from constants."""
  return lambda c: step_time.predict(run, c).tokens_per_second_per_device


def hours(run: Run, tokens: float, unit: float) -> Callable[[Constants], float]:
  """Device hours for `tokens`, counted in `unit` hours, from constants."""
  return lambda c: tokens / rate(run)(c) / _SECONDS_PER_HOUR / unit


# What was changed after a first look at these rows.
_FIRST_LOOK = 'one optimizer step for all flushes was settled with it in sight'
# The note on the optimizer's row; seekax/planning/run.py says more on it.
_GRADIENTS = 'gradients in float32, as this program sends them'


def _phase_rows(v3: Run) -> list[Published]:
  """The phases of V3's step."""

  def phase(name: str) -> Callable[[Constants], float]:
    return lambda c: getattr(step_time.predict(v3, c), name)

  words = {
    'forward': 'forward chunks (1F)',
    'backward': 'backward chunks (1B)',
    'weight': 'weight chunks (1W)',
    'pair': 'overlapped pairs (1F1B)',
    'bubble': 'bubble',
    'optimizer': 'optimizer',
  }
  return [
    Published(
      f'V3 step: {text}',
      's',
      getattr(MPFT.phases, name),
      phase(name),
      fitted=name != 'optimizer',
      note=_GRADIENTS if name == 'optimizer' else '',
      in_sight=name == 'optimizer',
      run=v3,
    )
    for name, text in words.items()
  ]


def _v3_rows(v3: Run) -> list[Published]:
  """Hours and rate of V3's pre-training, and of its context extension."""
  same = {
    'note': 'the run whose phases are fitted',
    'in_sight': True,
    'run': v3,
  }
  extensions = [v3.extended(length) for length in (32768, 131072)]
  return [
    Published(
      'V3 pre-training',
      'K hours',
      price.V3_HOURS.pretraining / 1e3,
      hours(v3, price.V3_PRETRAINING_TOKENS, 1e3),
      **same,
    ),
    Published(
      'V3 per 1e12 tokens', 'K hours', 180, hours(v3, 1e12, 1e3), **same
    ),
    Published('V3, 2,048 H800', 'tokens/s/GPU', 1543, rate(v3), **same),
    Published(
      'V3 context extension',
      'K hours',
      price.V3_HOURS.context_extension / 1e3,
      lambda c: sum(
        hours(longer, _EXTENSION_STEPS * longer.step_tokens, 1e3)(c)
        for longer in extensions
      ),
      note='layout assumed',
      run=extensions[-1],
    ),
  ]


def _rate_row(name: str, value: float, run: Run, **more) -> Published:
  return Published(name, 'tokens/s/GPU', value, rate(run), run=run, **more)


def _llama_row(
  name: str, value: float, preset: str, ranks: tuple[int, int, int], **more
) -> Published:
  run = runs.llama(preset, *ranks)
  predict = hours(run, runs.LLAMA_TOKENS[preset], 1e6)
  return Published(name, 'M hours', value, predict, run=run, **more)


def training_rows() -> list[Published]:
  """Every published figure of training, fitted ones first."""
  v3 = runs.deepseek_v3()
  assumed = {'note': 'layout assumed', 'remat_known': False}
  looked_at = {'note': _FIRST_LOOK, 'in_sight': True}
  return [
    *_phase_rows(v3),
    _rate_row(
      'Megatron BF16, 1,024 H100',
      MEGATRON_BF16,
      runs.megatron('bfloat16'),
      fitted=True,
    ),
    _llama_row(
      'Llama 3.1 405B',
      LLAMA_405B_HOURS / 1e6,
      'llama3_405b',
      (16, 8, 16384),
      fitted=True,
    ),
    *_v3_rows(v3),
    _rate_row('Megatron FP8, 1,024 H100', 1297, runs.megatron('fp8')),
    _rate_row('Automodel BF16, 256 H100', 1002, runs.automodel(256, 512, 1)),
    _rate_row(
      'Automodel BF16, 1,024 H100',
      865,
      runs.automodel(1024, 8192, 4),
      **looked_at,
    ),
    _rate_row(
      'Automodel Kimi-K2, 256 H100',
      924,
      runs.automodel(256, 512, 2, kimi=True),
      **looked_at,
    ),
    _llama_row('Llama 3.1 70B', 7.0, 'llama3_70b', (4, 8, 8192), **assumed),
    _llama_row('Llama 3.1 8B', 1.46, 'llama3_8b', (1, 1, 2048), **assumed),
  ]


# Others read this off the published profile of a unit at full load
# (github.com/alibaba/InferSim): its devices, batch per device, and context.
_PROFILE_DEVICES, _PROFILE_REQUESTS, _PROFILE_CONTEXT = 128, 128, 4096
# The share of prompts that DeepSeek's service found in its cache, over 24 hours
# (notes of February 2025).
_CACHE_HITS = 0.563
_DEVICES_PER_NODE = 8


def serving_rows() -> list[Published]:
  """DeepSeek's service on H800; no constant is fitted on it."""
  v3 = dataclasses.replace(presets.v3_671b(), mtp_depth=0)
  device = hardware.DEVICES['h800']

  def service(constants: Constants) -> serving.Service:
    found = serving.plan(v3, device, True, constants=constants)
    assert found is not None
    return found

  def profile(constants: Constants) -> float:
    demand = serving.Demand(context=_PROFILE_CONTEXT)
    return _PROFILE_REQUESTS / serving.decode_seconds(
      v3, device, _PROFILE_DEVICES, _PROFILE_REQUESTS, True, demand, constants
    )

  day = 'a mean over a day and night; ours is a unit at full load'
  return [
    Published(
      'Service: input per node, cache hits too',
      'tokens/s',
      73.7e3,
      lambda c: (
        _DEVICES_PER_NODE
        * service(c).prefill_tokens_per_second
        / (1 - _CACHE_HITS)
      ),
      note=day,
    ),
    Published(
      'Service: output per node',
      'tokens/s',
      14.8e3,
      lambda c: _DEVICES_PER_NODE * service(c).decode_tokens_per_second,
      note=day,
    ),
    Published(
      'Profile: prefill',
      'tokens/s/GPU',
      7839,
      lambda c: service(c).prefill_tokens_per_second,
      note='experts over 32',
    ),
    Published(
      'Profile: decoding, 128 requests',
      'tokens/s/GPU',
      2324,
      profile,
      note='experts over 128',
    ),
  ]
