"""DeepSeek-V3: the second stage of context extension, 32K to 128K tokens.

Starts from the first stage: --config.train.init_from=<its workdir>. What isn't
said here is as in v3_extend_32k.py. Not run here.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

_FIRST = pathlib.Path(__file__).with_name('v3_extend_32k.py')


def get_config(arg: str = '') -> ConfigDict:
  """The run; arg 'tiny' shrinks it."""
  first = runpy.run_path(str(_FIRST))
  config = first['get_config']()
  config.model.context_length = 131072
  config.data.sequence_length = 131072  # 4.3
  config.data.batch_size = 480  # 4.3
  config.train.steps = 1000  # 4.3
  return first['variant'](config, arg, 8192, 1)
