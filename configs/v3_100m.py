"""DeepSeek-V3's recipe at 106M parameters, 38M activated, for one small GPU.

The parts of v3_671b.py with 32 experts in 4 groups; the phases in proportion to
2B tokens of 1,024 at a time. Rates and batch are a first guess: not run here.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from seekax.configuration import presets

_PAPER = pathlib.Path(__file__).with_name('v3_671b.py')


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = runpy.run_path(str(_PAPER))['get_config']()
  model = config.model
  for key, value in (
    ('vocab_size', 16384),
    ('context_length', 1024),
    ('embed_dim', 512),
    ('num_layers', 10),
    ('num_dense_layers', 1),
    ('num_heads', 8),
    ('query_latent_dim', 192),
    ('kv_latent_dim', 128),
    ('nope_head_dim', 32),
    ('rope_head_dim', 32),
    ('value_head_dim', 64),
    ('mlp_dim', 1408),
    ('expert_dim', 176),
    ('num_experts', 32),
    ('experts_per_token', 4),
    ('num_expert_groups', 4),
    ('num_kept_groups', 2),
  ):
    model[key] = value
  model.init_std = 0.02
  config.data.sequence_length = 1024
  presets.scale_phases(config, 2e9 / 14.8e12)
  config.data.batch_size = 160
  optim = config.optim
  optim.learning_rate = 2e-3
  optim.final_learning_rate = 2e-4  # A tenth, as in the paper,
  optim.last_learning_rate = 6.6e-5  # and a thirtieth.
  optim.warmup_steps = 300
  train = config.train
  train.steps = 12_829
  train.micro_batches = 5
  train.ramp_micro_batches = 1  # A fifth, as in the paper.
  # The same way over fewer steps: 0.001 needs some 300 to balance.
  train.bias_update_rate = 3e-3
  return presets.variant(config, arg)
