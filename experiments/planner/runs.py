"""Published training runs, as the planner describes a run.

A run's layout is its source's, and so is what it computes again for gradients.
Where the source says nothing of that, the run computes the least again that
fits (`least_recomputed`).
"""

import dataclasses

from seekax.configuration import presets
from seekax.planning import hardware, memory
from seekax.planning.layout import Layout, paper
from seekax.planning.run import Run

# Tokens of pre-training: 405B's from the paper; the model card says 15T+ of the
# other sizes.
LLAMA_TOKENS = {
  'llama3_405b': 15.6e12,
  'llama3_70b': 15e12,
  'llama3_8b': 15e12,
}


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

  TP 2, PP 8, VP 4, EP 64, 8,192 sequences; MLA's up-projections are computed
  again, the exchange is not overlapped. Megatron spreads experts over tensor
  ranks too (expert-tensor-parallel size 1): 64 are 8 nodes of 4 pairs of tensor
  ranks, and the data ranks beyond are 2. Gradients are added up and travel in
  bfloat16 (grad_reduce_in_fp32 = False in its performance overrides). Nothing
  says that it dispatches in FP8.
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


def automodel(
  devices: int, batch_size: int, flushes: int, kimi: bool = False
) -> Run:
  """Rows of NeMo AutoModel's performance summary.

  V3 runs with PP 4, VP 8, EP 64, Kimi-K2 with PP 8, VP 4, EP 32; a micro-batch
  is one sequence. The pipeline runs empty after every 8 sequences of a data
  rank ("GA"). The recipes (examples/benchmark/configs) compute whole layers
  again (activation_checkpointing) and keep gathered weights for a step
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
  again (section 3.3.2). The paper says that its ranks interleave stages, but
  not how many: we assume 4. The layouts of 70B and 8B aren't published: we
  assume them, and the least recomputation that fits.
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
  """The run with each kind of recomputation, the least first."""
  return {
    remat: dataclasses.replace(
      run, layout=dataclasses.replace(run.layout, remat=remat)
    )
    for remat in ('none', 'paper', 'full')
  }


def fits(run: Run) -> bool:
  """Whether the planner finds room for the run on its device."""
  return run.training_memory().total <= memory.room(run.device)


def least_recomputed(run: Run) -> Run:
  """The first of `recomputing` that fits, or else the last."""
  runs = recomputing(run)
  return next(filter(fits, runs.values()), runs['full'])
