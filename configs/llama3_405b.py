"""The dense baseline in the shape of Llama 3.1 405B (arXiv 2407.21783).

Hardware of its authors: 30.84M H100 hours. Not run here.
At laptop size: seekax train --config=llama3_405b:tiny --workdir=runs/llama3
"""

from ml_collections import ConfigDict

from seekax.configuration import presets


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = presets.run_of(presets.llama3_405b())
  config.model.rope_scaling = 'none'  # Scaled with the long-context stage.
  config.model.context_length = 8192
  config.data.batch_size = 2048
  config.data.sequence_length = 8192
  config.optim.learning_rate = 8e-5
  config.train.steps = 929_832  # 15.6T tokens.
  return presets.variant(config, arg)
