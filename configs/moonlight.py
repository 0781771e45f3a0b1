"""Moonlight-16B-A3B: V3's router on V2-Lite's shape (arXiv 2502.16982).

Trained by its authors on 5.7T tokens. Not run here.
At laptop size: seekax train --config=moonlight:tiny --workdir=runs/moonlight
"""

from ml_collections import ConfigDict

from seekax.configuration import presets


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = presets.run_of(presets.moonlight())
  config.data.batch_size = 2048
  config.data.sequence_length = 8192
  config.optim.learning_rate = 4.2e-4
  config.train.balance_weight = 0.001
  config.train.steps = 339_747  # 5.7T tokens.
  return presets.variant(config, arg)
