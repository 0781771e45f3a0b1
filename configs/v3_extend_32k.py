"""DeepSeek-V3: the first stage of context extension, 4K to 32K tokens.

Starts from a pre-trained run: --config.train.init_from=<its workdir>. Every
value stands with its section of arXiv 2412.19437. The report says nothing of
the MTP loss, the router bias and the balance loss in these stages: they are
kept as the pre-training ended, its bias at rest. Not run here.
At laptop size, every length a sixteenth of the paper's (256 to 2K to 8K):
  seekax train --config=v3_671b:tiny --workdir=runs/short \\
    --config.data.sequence_length=256
  seekax train --config=v3_extend_32k:tiny --workdir=runs/longer \\
    --config.train.init_from=runs/short
  seekax train --config=v3_extend_128k:tiny --workdir=runs/long \\
    --config.train.init_from=runs/longer
"""

from ml_collections import ConfigDict

from seekax.configuration import presets


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = presets.run_of(presets.v3_671b())
  model = config.model
  model.rope_scaling = 'yarn'  # 4.3: the decoupled key alone,
  model.rope_factor = 40.0  # s,
  model.yarn_beta_slow = 1.0  # alpha,
  model.yarn_beta_fast = 32.0  # beta,
  model.yarn_mscale_all_dim = 1.0  # sqrt(t) = 0.1 ln(s) + 1,
  model.rope_original_length = 4096
  model.context_length = 32768
  config.compute.remat = 'paper'
  config.data.sequence_length = 32768  # 4.3
  config.data.batch_size = 1920  # 4.3
  optim = config.optim
  optim.learning_rate = 7.3e-6  # 4.3: as the pre-training ended.
  optim.warmup_steps = 0
  optim.moment_dtype = 'bfloat16'  # 3.3.3
  optim.weight_decay = 0.1  # 4.2
  optim.clip_norm = 1.0  # 4.2
  train = config.train
  train.extend_context = True
  train.steps = 1000  # 4.3
  train.micro_batches = 15
  train.mtp_weight = 0.1  # 4.2, as from 10T tokens.
  train.bias_update_rate = 0.0  # 4.2, as from 14.3T tokens.
  return variant(config, arg, 2048, 4)


def variant(config: ConfigDict, arg: str, length: int, rows: int) -> ConfigDict:
  """Arg 'tiny' shrinks all but the proportions of the lengths and batches."""
  presets.variant(config, arg)
  if arg:
    config.model.rope_original_length = 256
    config.model.context_length = config.data.sequence_length = length
    config.data.batch_size, config.data.num_shards = rows, 1
    # Long windows are slow.
    config.data.heldout_fraction = 0.01
    config.eval.batch_size = 1
  return config
