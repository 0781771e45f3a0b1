"""Every part of DeepSeek-V3 at a size that trains in seconds on a CPU.

seekax train --config=tiny --workdir=runs/tiny
"""

from ml_collections import ConfigDict

from seekax import config as seekax_config


def get_config(arg: str = '') -> ConfigDict:
  """The run; it is its own 'tiny'."""
  config = seekax_config.run_of(seekax_config.tiny())
  return seekax_config.variant(config, arg or 'tiny')
