"""DeepSeek-V2 236B (arXiv 2405.04434, section 3.1).

Hardware of the paper: H800s, 8.1T tokens, 172.8K GPU hours per trillion. Not
run here.
At laptop size: seekax train --config=v2:tiny --workdir=runs/v2
"""

from ml_collections import ConfigDict

from seekax.configuration import presets


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = presets.run_of(presets.v2())
  config.model.rope_scaling = 'none'  # YaRN comes with the extension (3.1.4).
  config.model.context_length = 4096
  config.data.batch_size = 9216  # After its ramp from 2,304.
  config.optim.learning_rate = 2.4e-4
  config.train.balance_weight = 0.003  # Expert-level balance, alpha 1.
  config.train.steps = 214_577  # 8.1T tokens.
  return presets.variant(config, arg)
