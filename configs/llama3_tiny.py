"""The dense baseline at the size of `tiny`.

seekax train --config=llama3_tiny --workdir=runs/llama3_tiny
"""

from ml_collections import ConfigDict

from seekax.configuration import presets


def get_config(arg: str = '') -> ConfigDict:
  """The run; it is its own 'tiny'."""
  config = presets.run_of(presets.llama3_tiny())
  return presets.variant(config, arg or 'tiny')
