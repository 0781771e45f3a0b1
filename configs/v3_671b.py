"""DeepSeek-V3 671B: the pre-training stage (arXiv 2412.19437).

Hardware of the paper: 2,048 H800, 14.8T tokens, 2.664M GPU hours. Not run
here. Every value of the report's training stands below with its section; the
model's shape, section 4.2 too, is the preset. The report gives no shape for the
growth of the batch: here it is linear in tokens, by 128 sequences.
At laptop size: seekax train --config=v3_671b:tiny --workdir=runs/v3_671b
"""

from ml_collections import ConfigDict

from seekax.configuration import presets

BILLION, TRILLION = 10**9, 10**12


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = presets.run_of(presets.v3_671b())
  # 4.2: 4K tokens with plain rotary embedding; YaRN comes with the extension to
  # 32K and 128K (4.3).
  config.model.rope_scaling = 'none'
  config.model.context_length = 4096
  config.model.init_std = 0.006  # 4.2
  config.compute.remat = 'paper'  # 3.2.3: norms, up-projections, SwiGLU again.
  config.compute.unroll_layers = 0  # Ours: layers alike are compiled once.
  data = config.data
  data.sequence_length = 4096  # 4.2: "maximum sequence length ... 4K"
  data.batch_size = 15360  # 4.2: 3,072 to 15,360 sequences ...
  data.isolate_documents = False  # 4.1: no cross-sample attention masking.
  optim = config.optim
  optim.name = 'adamw'  # 4.2
  optim.beta1, optim.beta2 = 0.9, 0.95  # 4.2
  optim.weight_decay = 0.1  # 4.2
  optim.clip_norm = 1.0  # 4.2
  optim.moment_dtype = 'bfloat16'  # 3.3.3
  optim.learning_rate = 2.2e-4  # 4.2, and the four phases that follow:
  optim.warmup_steps = 2000
  optim.constant_tokens = 10 * TRILLION
  optim.decay_tokens = 4300 * BILLION
  optim.final_learning_rate = 2.2e-5
  optim.final_tokens = 333 * BILLION
  optim.last_learning_rate = 7.3e-6
  optim.ema_decay = 0.999  # 3.2.3: an average on the host; decay not given.
  train = config.train
  train.precision = 'fp8'  # 3.3: tiles of 128, blocks of 128x128, E4M3.
  train.steps = 242_940  # 14.8T tokens (4.1).
  train.micro_batches = 120  # ... by 128 sequences,
  train.ramp_micro_batches = 24
  train.ramp_tokens = 469 * BILLION  # 4.2: ... over 469B tokens.
  train.mtp_weight = 0.3  # 4.2, to 10T tokens, then 0.1
  train.mtp_weight_tokens = 10 * TRILLION
  train.mtp_late_weight = 0.1
  train.bias_update_rate = 1e-3  # 4.2, to 14.3T tokens, then 0
  train.bias_update_tokens = 14_300 * BILLION
  train.balance_weight = 1e-4  # 4.2
  return presets.variant(config, arg)
