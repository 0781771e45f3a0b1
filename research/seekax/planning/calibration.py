"""What was published of training speed and serving, and how it is predicted.

Three sources fit: the phases of V3's step ("Insights into DeepSeek-V3", arXiv
2505.09343, table 4), Megatron's bfloat16 row, and the hours of Llama 3.1 405B.
All other rows are held out. fit.py gives hardware.FITTED, to the digits that
stand there; a test compares them.

A row's layout is its source's, and so is what it computes again for gradients;
where nothing is said of that, it is the least that fits (`least_recomputed`).
Memory is predicted too: rows whose layout the planner finds no room for are
marked, as are those of which the model of time was changed after a first look
(`in_sight`).
"""

from collections.abc import Callable
import dataclasses

from seekax.configuration import presets
from seekax.planning import (
  hardware,
  memory,
  price,
  schedules,
  serving,
  step_time,
)
from seekax.planning.layout import Layout, paper
from seekax.planning.step_time import Constants, Run

_SECONDS_PER_HOUR = 3600.0
MEGATRON_BF16 = 1061  # tokens/s per H100
LLAMA_405B_HOURS = 30.84e6
_EXTENSION_STEPS = 1000  # of each stage (DeepSeek-V3, section 4.3)


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


def megatron(precision: str) -> Run:
  """Megatron-Bridge's DEEPSEEK_V3_PRETRAIN_CONFIG_H100_V1.

  TP 2, PP 8, VP 4, EP 64, 8,192 sequences, MLA's up-projections computed again,
  the exchange not overlapped. Megatron spreads experts over tensor ranks too
  (expert-tensor-parallel size 1): 64 are 8 nodes of 4 pairs of tensor ranks,
  and the data ranks beyond are 2. Gradients are added up and travel in bfloat16
  (grad_reduce_in_fp32 = False in its performance overrides). Nothing says that
  it dispatches in FP8.
  """
  return Run(
    presets.v3_671b(),
    hardware.DEVICES['h100'],
    Layout(
      pipeline=8,
      virtual_stages=4,
      tensor=2,
      expert_node=8,
      expert=4,
      data=2,
      fp8_dispatch=False,
      whole_experts=True,
    ),
    batch_size=8192,
    sequence_length=4096,
    precision=precision,
    gradient_dtype='bfloat16',
  )


def _automodel(
  devices: int, batch_size: int, flushes: int, kimi: bool = False
) -> Run:
  """Rows of NeMo AutoModel's performance summary.

  PP 4, VP 8, EP 64, of Kimi-K2 PP 8, VP 4, EP 32; one sequence per micro-batch.
  The pipeline runs empty after every 8 sequences of a data rank ("GA").
  The recipes (examples/benchmark/configs) compute whole layers again
  (activation_checkpointing) and keep gathered weights for a step
  (reshard_after_forward: false), which is `data` here and not `fsdp`.
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
      data=data,
      remat='full',
    ),
    batch_size=batch_size,
    sequence_length=4096,
    flushes=flushes,
  )


def llama(name: str, pipeline: int, tensor: int, devices: int) -> Run:
  """Llama 3.1 in bfloat16, 8,192 positions, 16M tokens per step.

  405B: TP 8, PP 16 on 16,384 H100 (arXiv 2407.21783, table 4), nothing computed
  again (section 3.3.2); that its ranks interleave stages is said there, how
  many is not: 4 is assumed. Layouts of 70B and 8B aren't published: all of
  theirs is assumed, and what they compute again is the least that fits.
  """
  run = Run(
    presets.PRESETS[name](),
    hardware.DEVICES['h100'],
    Layout(
      pipeline=pipeline,
      virtual_stages=4 if pipeline > 1 else 1,
      tensor=tensor,
      data=devices // (pipeline * tensor),
      remat='none',
    ),
    batch_size=2048,
    sequence_length=8192,
  )
  return run if name == 'llama3_405b' else least_recomputed(run)


def recomputing(run: Run) -> dict[str, Run]:
  """The run with each kind of recomputation, that with least first."""
  return {
    remat: dataclasses.replace(
      run, layout=dataclasses.replace(run.layout, remat=remat)
    )
    for remat in ('none', 'paper', 'full')
  }


def fits(run: Run) -> bool:
  """Whether the planner finds room for the run on its device."""
  return step_time.training_memory(run).total <= memory.room(run.device)


def least_recomputed(run: Run) -> Run:
  """The first run of `recomputing` that fits, or else the last."""
  runs = recomputing(run)
  return next(filter(fits, runs.values()), runs['full'])


# The paper's number for 405B; the model card says 15T+ for all sizes.
LLAMA_TOKENS = {
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
    in_sight: not fitted, yet no surprise either: `note` says why.
    run: what is predicted, where it is training.
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
  return lambda c: step_time.predict(run, c).tokens_per_second_per_device


def hours(run: Run, tokens: float, unit: float) -> Callable[[Constants], float]:
  return lambda c: (
    tokens
    / step_time.predict(run, c).tokens_per_second_per_device
    / _SECONDS_PER_HOUR
    / unit
  )


def _phase(name: str) -> Callable[[Constants], float]:
  return lambda c: getattr(step_time.predict(deepseek_v3(), c), name)


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
      f'V3 step: {words}',
      's',
      value,
      _phase(name),
      fitted,
      note,
      not fitted,
      v3,
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
  extensions = [extension(v3, length) for length in (32768, 131072)]
  dense = {
    name: llama(name, *ranks)
    for name, ranks in (
      ('llama3_405b', (16, 8, 16384)),
      ('llama3_70b', (4, 8, 8192)),
      ('llama3_8b', (1, 1, 2048)),
    )
  }
  rates = [
    ('Megatron FP8, 1,024 H100', 1297, megatron('fp8'), '', False),
    ('Automodel BF16, 256 H100', 1002, _automodel(256, 512, 1), '', False),
    (
      'Automodel BF16, 1,024 H100',
      865,
      _automodel(1024, 8192, 4),
      _FIRST_LOOK,
      True,
    ),
    (
      'Automodel Kimi-K2, 256 H100',
      924,
      _automodel(256, 512, 2, kimi=True),
      _FIRST_LOOK,
      True,
    ),
  ]
  return [
    *isca,
    Published(
      'Megatron BF16, 1,024 H100',
      'tokens/s/GPU',
      MEGATRON_BF16,
      rate(megatron('bfloat16')),
      fitted=True,
      run=megatron('bfloat16'),
    ),
    Published(
      'Llama 3.1 405B',
      'M hours',
      LLAMA_405B_HOURS / 1e6,
      hours(dense['llama3_405b'], LLAMA_TOKENS['llama3_405b'], 1e6),
      fitted=True,
      run=dense['llama3_405b'],
    ),
    Published(
      'V3 pre-training',
      'K hours',
      price.V3_HOURS.pretraining / 1e3,
      hours(v3, price.V3_PRETRAINING_TOKENS, 1e3),
      run=v3,
      **same,
    ),
    Published(
      'V3 per 1e12 tokens',
      'K hours',
      180,
      hours(v3, 1e12, 1e3),
      run=v3,
      **same,
    ),
    Published('V3, 2,048 H800', 'tokens/s/GPU', 1543, rate(v3), run=v3, **same),
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
    *(
      Published(
        name,
        'tokens/s/GPU',
        value,
        rate(run),
        note=note,
        in_sight=in_sight,
        run=run,
      )
      for name, value, run, note, in_sight in rates
    ),
    *(
      Published(
        words,
        'M hours',
        value,
        hours(dense[name], LLAMA_TOKENS[name], 1e6),
        note='layout assumed',
        run=dense[name],
        remat_known=False,
      )
      for words, value, name in (
        ('Llama 3.1 70B', 7.0, 'llama3_70b'),
        ('Llama 3.1 8B', 1.46, 'llama3_8b'),
      )
    ),
  ]


# What was changed after a first look at these rows.
_FIRST_LOOK = 'one optimizer step for all flushes was settled with it in sight'
# Note on the row of the optimizer; see hardware.py on gradients.
_GRADIENTS = 'gradients in float32, as this program sends them'

# Read off the published profile of a unit at full load, by others:
# github.com/alibaba/InferSim; its batch, per device, and its context.
_PROFILE_DEVICES, _PROFILE_REQUESTS, _PROFILE_CONTEXT = 128, 128, 4096
# Share of the prompts of DeepSeek's service in 24 hours that its cache served
# (notes of February 2025).
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
