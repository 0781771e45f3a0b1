"""Every part of DeepSeek-V3 at a size that trains in seconds on a CPU.

seekax train --config=tiny --workdir=runs/tiny
"""

from ml_collections import ConfigDict

from seekax.configuration import presets


def get_config(arg: str = '') -> ConfigDict:
  """The run; it is its own 'tiny'."""
  config = presets.run_of(presets.tiny())
  return presets.variant(config, arg or 'tiny')
