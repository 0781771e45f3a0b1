"""One training run as the planner sees it: a model, a device, a layout.

Gradients are added up and scattered between data ranks in float32, as this
program does it, unless a run says otherwise. DeepSeek-V3 keeps them so (section
3.3.3), but does not say how they travel; Llama 3.1 405B did both in float32
(arXiv 2407.21783, section 3.3.2).
"""

import dataclasses

from seekax.configuration.model import ModelConfig
from seekax.planning import memory
from seekax.planning.hardware import BFLOAT16, Device, FLOAT32
from seekax.planning.layout import Layout


@dataclasses.dataclass(frozen=True)
class Run:
  """What is trained, and on what.

  Attributes:
    model: the architecture.
    device: the accelerator that every rank is.
    layout: how the ranks share the work.
    batch_size: sequences per step.
    sequence_length: positions per sequence.
    precision: as train.precision.
    moment_dtype: as optim.moment_dtype.
    gradient_dtype: the dtype in which gradients are added up and travel.
    split_sequences: data ranks that share a sequence because it needs their
      memory, beside the layout's context ranks; each holds that much less.
    flushes: how often per step the pipeline runs empty.
  """

  model: ModelConfig
  device: Device
  layout: Layout
  batch_size: int
  sequence_length: int
  precision: str = 'bfloat16'
  moment_dtype: str = 'float32'
  gradient_dtype: str = 'float32'
  split_sequences: int = 1
  flushes: int = 1

  @property
  def fp8(self) -> bool:
    return self.precision == 'fp8'

  @property
  def gradient(self) -> float:
    """Bytes of a gradient."""
    return BFLOAT16 if self.gradient_dtype == 'bfloat16' else FLOAT32

  @property
  def positions(self) -> float:
    """Positions of a sequence that a device computes."""
    return self.sequence_length / self.layout.context / self.split_sequences

  @property
  def chunk_tokens(self) -> float:
    """Tokens of a micro-batch on a device; its tensor ranks count as one."""
    return self.layout.micro_batch * self.positions

  @property
  def micro_batches(self) -> int:
    """Micro-batches per step and data rank."""
    batch = self.batch_size * self.split_sequences
    return self.layout.micro_batches(batch)

  @property
  def step_tokens(self) -> int:
    return self.batch_size * self.sequence_length

  def extended(self, positions: int) -> 'Run':
    """The same run at more positions, with as many tokens per step.

    Sequences lie over neighbouring data ranks, so that a device computes as
    many positions of a micro-batch as before. DeepSeek-V3's report doesn't say
    how its context extension lay.
    """
    factor = max(positions // self.sequence_length, 1)
    return dataclasses.replace(
      self,
      sequence_length=positions,
      batch_size=self.batch_size // factor,
      split_sequences=factor,
    )

  def training_memory(self) -> memory.TrainingMemory:
    """Bytes of a step on the device that holds most."""
    return memory.training_memory(
      self.model,
      self.layout,
      self.batch_size,
      self.sequence_length,
      self.precision,
      self.moment_dtype,
      self.split_sequences,
      self.gradient,
    )
