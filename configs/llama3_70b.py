"""The dense baseline in the shape of Llama 3.1 70B (arXiv 2407.21783).

Hardware of its authors: 7.0M H100 hours. Not run here.
At laptop size: seekax train --config=llama3_70b:tiny --workdir=runs/llama3_70b
"""

from ml_collections import ConfigDict

from seekax.configuration import presets


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = presets.run_of(presets.llama3_70b())
  config.model.rope_scaling = 'none'  # Scaled with the long-context stage.
  config.model.context_length = 8192
  config.data.batch_size = 1024
  config.data.sequence_length = 8192
  config.optim.learning_rate = 1.5e-4
  config.train.steps = 1_788_140  # 15T tokens.
  return presets.variant(config, arg)
