"""Moonlight-16B-A3B: V3's router on V2-Lite's shape (arXiv 2502.16982).

Trained by its authors on 5.7T tokens. Not run here.
At laptop size: seekax train --config=moonlight:tiny --workdir=runs/moonlight
"""

from ml_collections import ConfigDict

from seekax import config as seekax_config


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = seekax_config.run_of(seekax_config.moonlight())
  config.data.batch_size = 2048
  config.data.sequence_length = 8192
  config.optim.learning_rate = 4.2e-4
  config.train.balance_weight = 0.001
  return seekax_config.variant(config, arg)
