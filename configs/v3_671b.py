"""DeepSeek-V3 671B: the pre-training stage (arXiv 2412.19437, section 4.2).

Hardware of the paper: 2,048 H800, 14.8T tokens, 2.664M GPU hours. Not run
here. The schedule holds the paper's phases in steps of the full batch, with one
constant phase at the end; its batch ramp is left out.
At laptop size: seekax train --config=v3_671b:tiny --workdir=runs/v3_671b
"""

from ml_collections import ConfigDict

from seekax import presets


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  config = presets.run_of(presets.v3_671b())
  # Section 4.2: pre-training at 4K with plain rotary embedding; YaRN comes with
  # the extension to 32K and 128K (section 4.3).
  config.model.rope_scaling = 'none'
  config.model.context_length = 4096
  config.optim.constant_steps = 157000  # To 10T tokens at 62.9M per step.
  config.optim.decay_steps = 68300  # The next 4.3T.
  return presets.variant(config, arg)
