"""The dense baseline at the size of `tiny`.

seekax train --config=llama3_tiny --workdir=runs/llama3_tiny
"""

from ml_collections import ConfigDict

from seekax import config as seekax_config


def get_config(arg: str = '') -> ConfigDict:
  """The run; it is its own 'tiny'."""
  config = seekax_config.run_of(seekax_config.llama3_tiny())
  return seekax_config.variant(config, arg or 'tiny')
