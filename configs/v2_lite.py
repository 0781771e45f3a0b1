"""DeepSeek-V2-Lite 15.7B (arXiv 2405.04434, appendix B).

Trained by its authors on 5.7T tokens. Not run here.
At laptop size: seekax train --config=v2_lite:tiny --workdir=runs/v2_lite
"""

from ml_collections import ConfigDict

from seekax.configuration import presets


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = presets.run_of(presets.v2_lite())
  config.model.rope_scaling = 'none'  # YaRN comes with the extension.
  config.model.context_length = 4096
  config.data.batch_size = 4608
  config.optim.learning_rate = 4.2e-4
  config.train.balance_weight = 0.001
  config.train.steps = 301_997  # 5.7T tokens.
  return presets.variant(config, arg)
