"""What was published of training speed, and the constants fitted on it.

Three sources fit: the phases of V3's step ("Insights into DeepSeek-V3", arXiv
2505.09343, table 4), Megatron's bfloat16 row, and the hours of Llama 3.1 405B.
All other rows are held out. `fit` gives step_time.FITTED, to the
digits that stand there; a test compares them.
"""

from collections.abc import Callable
import dataclasses

from seekax import presets
from seekax.planning import hardware, price, schedules, serving, step_time
from seekax.planning.layout import Layout, paper
from seekax.planning.step_time import Constants, Run

_SECONDS_PER_HOUR = 3600.0
_MEGATRON_BF16 = 1061  # tokens/s per H100
_LLAMA_405B_HOURS = 30.84e6
_ROUNDS = 20  # of Newton's method; a handful would do


@dataclasses.dataclass(frozen=True)
class Phases:
  """A step of DeepSeek-V3 on 2,048 H800 (table 4 of arXiv 2505.09343).

  Seconds, each summed over a step: of chunks alone (1F, 1B, 1W), of overlapped
  pairs (1F1B), of waiting, of the optimizer.
  """

  forward: float
  bubble: float
  backward: float
  weight: float
  pair: float
  optimizer: float
  step: float


# The column MPFT, the network that V3 was trained on.
INSIGHTS_TABLE_4 = Phases(
  forward=1.13,
  bubble=2.06,
  backward=1.99,
  weight=0.48,
  pair=13.95,
  optimizer=0.29,
  step=19.926,
)
_STAGES, _MICRO_BATCHES = 16, 120


def published_chunks() -> schedules.Costs:
  """Times of single chunks, from the phases and the counts of DualPipe.

  15,360 sequences over 128 data ranks are 120 micro-batches of one sequence, if
  each is one: the paper doesn't say. 1B is taken to hold full backward chunks
  and those of the inputs.
  """
  table = INSIGHTS_TABLE_4
  counts = schedules.dual_counts(_STAGES, _MICRO_BATCHES)
  weight = table.weight / counts['W']
  backward = table.backward - counts['B'] * weight
  return schedules.Costs(
    forward=table.forward / counts['F'],
    backward_input=backward / (counts['B'] + counts['I']),
    backward_weight=weight,
    pair=table.pair / counts['FB'],
  )


def deepseek_v3() -> Run:
  """The pre-training step of DeepSeek-V3 (sections 3.2 and 4.2)."""
  return Run(
    presets.v3_671b(),
    hardware.DEVICES['h800'],
    paper(2048),
    batch_size=15360,
    sequence_length=4096,
    precision='fp8',
    moment_dtype='bfloat16',
  )


def _megatron(precision: str) -> Run:
  """Megatron-Bridge's DEEPSEEK_V3_PRETRAIN_CONFIG_H100_V1.

  TP 2, PP 8, VP 4, EP 64, 8,192 sequences, MLA's up-projections computed again,
  the exchange not overlapped. Nothing says that it dispatches in FP8.
  """
  return Run(
    presets.v3_671b(),
    hardware.DEVICES['h100'],
    Layout(
      pipeline=8,
      virtual_stages=4,
      tensor=2,
      expert_node=8,
      expert=8,
      fp8_dispatch=False,
    ),
    batch_size=8192,
    sequence_length=4096,
    precision=precision,
  )


def _automodel(
  devices: int, batch_size: int, flushes: int, kimi: bool = False
) -> Run:
  """Rows of NeMo AutoModel's performance summary.

  PP 4, VP 8, EP 64, of Kimi-K2 PP 8, VP 4, EP 32; one sequence per micro-batch.
  The pipeline runs empty after every 8 sequences of a data rank ("GA").
  Recomputation isn't stated there: 'paper' is assumed.
  """
  pipeline, virtual, nodes = (8, 4, 4) if kimi else (4, 8, 8)
  data = devices // (pipeline * nodes * 8)
  model = presets.kimi_k2() if kimi else presets.v3_671b()
  return Run(
    model,
    hardware.DEVICES['h100'],
    Layout(
      pipeline=pipeline,
      virtual_stages=virtual,
      expert_node=nodes,
      expert=8,
      fsdp=data,
    ),
    batch_size=batch_size,
    sequence_length=4096,
    flushes=flushes,
  )


def _llama(name: str, pipeline: int, tensor: int, devices: int) -> Run:
  """Llama 3.1 in bfloat16, 8,192 positions, 16M tokens per step.

  405B: TP 8, PP 16 on 16,384 H100 (arXiv 2407.21783, table 4); that its ranks
  interleave stages is said there, how many is not: 4 is assumed. Layouts of
  70B and 8B aren't published: all of theirs is assumed.
  """
  return Run(
    presets.PRESETS[name](),
    hardware.DEVICES['h100'],
    Layout(
      pipeline=pipeline,
      virtual_stages=4 if pipeline > 1 else 1,
      tensor=tensor,
      data=devices // (pipeline * tensor),
    ),
    batch_size=2048,
    sequence_length=8192,
  )


# Of the paper for 405B; the model card says 15T+ of all.
_LLAMA_TOKENS = {
  'llama3_405b': 15.6e12,
  'llama3_70b': 15e12,
  'llama3_8b': 15e12,
}


@dataclasses.dataclass(frozen=True)
class Published:
  """A published figure and how it is predicted.

  Attributes:
    name: of the row.
    unit: of the figure.
    value: as published.
    predict: ours, from constants.
    fitted: whether the constants were fitted on it.
    note: what is to be known.
  """

  name: str
  unit: str
  value: float
  predict: Callable[[Constants], float]
  fitted: bool = False
  note: str = ''
  in_sight: bool = False  # not fitted, yet no surprise: `note` says why


def _rate(run: Run) -> Callable[[Constants], float]:
  return lambda c: step_time.predict(run, c).tokens_per_second_per_device


def _hours(
  run: Run, tokens: float, unit: float
) -> Callable[[Constants], float]:
  return lambda c: (
    tokens
    / step_time.predict(run, c).tokens_per_second_per_device
    / _SECONDS_PER_HOUR
    / unit
  )


def _phase(name: str) -> Callable[[Constants], float]:
  return lambda c: getattr(step_time.predict(deepseek_v3(), c), name)


def extension_hours(run: Run, positions: int) -> Callable[[Constants], float]:
  """1,000 steps at more positions (V3, section 4.3), in thousands of hours."""
  longer = extension(run, positions)
  return _hours(longer, 1000 * longer.step_tokens, 1e3)


def extension(run: Run, positions: int) -> Run:
  """The same layout at more positions, as many tokens per step.

  Sequences lie over neighbouring data ranks, so that a device computes as many
  positions of a micro-batch as before; the paper says nothing of it.
  """
  factor = max(positions // run.sequence_length, 1)
  return dataclasses.replace(
    run,
    sequence_length=positions,
    batch_size=run.batch_size // factor,
    split_sequences=factor,
  )


def training_rows() -> list[Published]:
  """Every published figure of training, fitted ones first."""
  v3 = deepseek_v3()
  table = INSIGHTS_TABLE_4
  isca = [
    Published(
      f'V3 step: {words}', 's', value, _phase(name), fitted, note, not fitted
    )
    for words, name, value, fitted, note in (
      ('forward chunks (1F)', 'forward', table.forward, True, ''),
      ('backward chunks (1B)', 'backward', table.backward, True, ''),
      ('weight chunks (1W)', 'weight', table.weight, True, ''),
      ('overlapped pairs (1F1B)', 'pair', table.pair, True, ''),
      ('bubble', 'bubble', table.bubble, True, ''),
      ('optimizer', 'optimizer', table.optimizer, False, _GRADIENTS),
    )
  ]
  same = {'note': 'the run whose phases are fitted', 'in_sight': True}
  return [
    *isca,
    Published(
      'Megatron BF16, 1,024 H100',
      'tokens/s/GPU',
      _MEGATRON_BF16,
      _rate(_megatron('bfloat16')),
      True,
    ),
    Published(
      'Llama 3.1 405B',
      'M hours',
      _LLAMA_405B_HOURS / 1e6,
      _hours(
        _llama('llama3_405b', 16, 8, 16384), _LLAMA_TOKENS['llama3_405b'], 1e6
      ),
      True,
    ),
    Published(
      'V3 pre-training',
      'K hours',
      price.V3_HOURS.pretraining / 1e3,
      _hours(v3, price.V3_PRETRAINING_TOKENS, 1e3),
      **same,
    ),
    Published(
      'V3 per 1e12 tokens', 'K hours', 180, _hours(v3, 1e12, 1e3), **same
    ),
    Published('V3, 2,048 H800', 'tokens/s/GPU', 1543, _rate(v3), **same),
    Published(
      'V3 context extension',
      'K hours',
      price.V3_HOURS.context_extension / 1e3,
      lambda c: sum(
        extension_hours(v3, length)(c) for length in (32768, 131072)
      ),
    ),
    Published(
      'Megatron FP8, 1,024 H100',
      'tokens/s/GPU',
      1297,
      _rate(_megatron('fp8')),
    ),
    Published(
      'Automodel BF16, 256 H100',
      'tokens/s/GPU',
      1002,
      _rate(_automodel(256, 512, 1)),
    ),
    Published(
      'Automodel BF16, 1,024 H100',
      'tokens/s/GPU',
      865,
      _rate(_automodel(1024, 8192, 4)),
    ),
    Published(
      'Automodel Kimi-K2, 256 H100',
      'tokens/s/GPU',
      924,
      _rate(_automodel(256, 512, 2, kimi=True)),
    ),
    Published(
      'Llama 3.1 70B',
      'M hours',
      7.0,
      _hours(
        _llama('llama3_70b', 4, 8, 8192), _LLAMA_TOKENS['llama3_70b'], 1e6
      ),
      note='layout assumed',
    ),
    Published(
      'Llama 3.1 8B',
      'M hours',
      1.46,
      _hours(_llama('llama3_8b', 1, 1, 2048), _LLAMA_TOKENS['llama3_8b'], 1e6),
      note='layout assumed',
    ),
  ]


# Read off the published profile of a unit at full load, by others:
# github.com/alibaba/InferSim; its batch, per device, and its context.
_PROFILE_DEVICES, _PROFILE_REQUESTS, _PROFILE_CONTEXT = 128, 128, 4096
# Of the prompts of DeepSeek's service in 24 hours (notes of February 2025).
_CACHE_HITS = 0.563
_DEVICES_PER_NODE = 8


def serving_rows() -> list[Published]:
  """DeepSeek's service on H800, none fitted."""
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


# Why the optimizer's time is no prediction.
_GRADIENTS = 'sums in bfloat16 were chosen with this number in sight'


# --- The fit. -----------------------------------------------------------------


def fit(start: Constants = step_time.FITTED) -> Constants:
  """The constants that the three sources give.

  `expert_efficiency` and `passes` solve two equations: the arithmetic of F, I
  and W together as the published chunks say, and Megatron's rate in bfloat16.
  Then follow, one after the other, the slowdown of a pair, the stretch of the
  bubble and the efficiency of dense products.
  """
  constants = start
  v3, megatron = deepseek_v3(), _megatron('bfloat16')
  published = published_chunks()
  for _ in range(_ROUNDS):
    constants = _two_equations(
      constants,
      lambda c: _alone(v3, c) / (published.forward + published.backward) - 1,
      lambda c: _MEGATRON_BF16 / _rate(megatron)(c) - 1,
    )
    arithmetic = step_time.chunks(v3, constants).arithmetic
    slowdown = published.overlapped / arithmetic
    constants = dataclasses.replace(
      constants, overlap_slowdown=slowdown, bubble_stretch=1.0
    )
    bubble = step_time.predict(v3, constants).bubble
    constants = dataclasses.replace(
      constants, bubble_stretch=INSIGHTS_TABLE_4.bubble / bubble
    )
    constants = _fit_dense(constants)
  return constants


def _fit_dense(constants: Constants) -> Constants:
  """A step of Newton's towards the hours of Llama 3.1 405B."""
  tokens = _LLAMA_TOKENS['llama3_405b']
  hours = _hours(_llama('llama3_405b', 16, 8, 16384), tokens, 1.0)

  def excess(inverse: float) -> float:
    changed = dataclasses.replace(constants, dense_efficiency=1 / inverse)
    return hours(changed) / _LLAMA_405B_HOURS - 1

  inverse = 1 / constants.dense_efficiency
  inverse -= excess(inverse) / _slope(excess, inverse)
  return dataclasses.replace(constants, dense_efficiency=1 / inverse)


def _alone(run: Run, constants: Constants) -> float:
  """F and B of a chunk alone, the exchange in sight."""
  chunk = step_time.chunks(run, constants)
  return chunk.arithmetic + 2 * chunk.exchange


def _slope(function: Callable[[float], float], at: float) -> float:
  step = 1e-6 * at
  return (function(at + step) - function(at)) / step


def _two_equations(constants: Constants, first, second) -> Constants:
  """A step of Newton's in 1 / expert_efficiency and passes."""
  unknown = (1 / constants.expert_efficiency, constants.passes)

  def at(inverse: float, passes: float) -> tuple[float, float]:
    changed = dataclasses.replace(
      constants, expert_efficiency=1 / inverse, passes=passes
    )
    return first(changed), second(changed)

  here = at(*unknown)
  steps = [1e-6 * value for value in unknown]
  right = at(unknown[0] + steps[0], unknown[1])
  up = at(unknown[0], unknown[1] + steps[1])
  a, c = ((right[i] - here[i]) / steps[0] for i in range(2))
  b, d = ((up[i] - here[i]) / steps[1] for i in range(2))
  determinant = a * d - b * c
  inverse = unknown[0] - (d * here[0] - b * here[1]) / determinant
  passes = unknown[1] - (a * here[1] - c * here[0]) / determinant
  return dataclasses.replace(
    constants, expert_efficiency=1 / inverse, passes=passes
  )
