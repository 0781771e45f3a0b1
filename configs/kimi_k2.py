"""Kimi-K2 1T: V3's architecture, sparser, with fewer heads (arXiv 2507.20534).

Not run here. Its authors trained with Muon; this config has AdamW.
At laptop size: seekax train --config=kimi_k2:tiny --workdir=runs/kimi_k2
"""

from ml_collections import ConfigDict

from seekax.configuration import presets


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = presets.run_of(presets.kimi_k2())
  config.model.rope_scaling = 'none'  # YaRN comes with the extension.
  config.model.context_length = 4096
  config.train.balance_weight = 0.001
  config.train.steps = 246_366  # 15.5T tokens.
  return presets.variant(config, arg)
