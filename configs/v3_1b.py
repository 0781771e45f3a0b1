"""DeepSeek-V3's recipe at 1.1B parameters, 0.26B activated, for one GPU.

The parts of v3_671b.py with 64 experts in 8 groups; the phases in proportion to
20B tokens. Rates and batch are a first guess: not run here.
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
    ('vocab_size', 32768),
    ('embed_dim', 1024),
    ('num_layers', 16),
    ('num_dense_layers', 1),
    ('num_heads', 16),
    ('query_latent_dim', 384),
    ('kv_latent_dim', 256),
    ('nope_head_dim', 64),
    ('rope_head_dim', 32),
    ('value_head_dim', 64),
    ('mlp_dim', 2816),
    ('expert_dim', 320),
    ('num_experts', 64),
  ):
    model[key] = value
  model.init_std = 0.02
  presets.scale_phases(config, 20e9 / 14.8e12)
  config.data.batch_size = 320
  optim = config.optim
  optim.learning_rate = 8e-4
  optim.final_learning_rate = 8e-5  # A tenth, as in the paper,
  optim.last_learning_rate = 2.7e-5  # and a thirtieth.
  optim.warmup_steps = 500
  train = config.train
  train.steps = 15_882
  train.micro_batches = 10
  train.ramp_micro_batches = 2  # A fifth, as in the paper.
  # The same way over fewer steps: 0.001 needs some 300 to balance.
  train.bias_update_rate = 3e-3
  return presets.variant(config, arg)
