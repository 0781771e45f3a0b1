"""DeepSeek-V3's recipe at the size of V2-Lite: 16B, 2.7B activated.

V2-Lite's shape (arXiv 2405.04434, appendix B) with V3's router, MTP module and
schedule, the latter in proportion to 5.7T tokens, as many as V2-Lite saw; its
peak rate and batch. Not run here.
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
    ('vocab_size', 102400),
    ('embed_dim', 2048),
    ('num_layers', 27),
    ('num_dense_layers', 1),
    ('num_heads', 16),
    ('query_latent_dim', 0),
    ('mlp_dim', 10944),
    ('expert_dim', 1408),
    ('num_experts', 64),
    ('num_shared_experts', 2),
    ('experts_per_token', 6),
    ('num_expert_groups', 1),
    ('num_kept_groups', 1),
  ):
    model[key] = value
  presets.scale_phases(config, 5.7 / 14.8)
  config.data.batch_size = 4608
  optim = config.optim
  optim.learning_rate = 4.2e-4
  optim.final_learning_rate = 4.2e-5  # A tenth, as in the paper,
  optim.last_learning_rate = 1.4e-5  # and a thirtieth.
  optim.warmup_steps = 2000
  train = config.train
  train.steps = 311_548
  train.micro_batches = 36
  train.ramp_micro_batches = 8  # About a fifth, as in the paper.
  return presets.variant(config, arg)
