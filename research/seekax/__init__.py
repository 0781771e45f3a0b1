"""DeepSeek-V3 as open research software in JAX.

`load`, `config` and `train` are the front door; see `seekax.api`. They are
imported when they are first asked for, so that `import seekax` takes no time.
"""

import importlib
import importlib.metadata
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
  from seekax.api import config, load, Model, train
  from seekax.configuration.errors import InputError

  __version__: str

__all__ = ['InputError', 'Model', '__version__', 'config', 'load', 'train']

_HOMES = {
  'InputError': 'seekax.configuration.errors',
  'Model': 'seekax.api',
  'config': 'seekax.api',
  'load': 'seekax.api',
  'train': 'seekax.api',
}


def __getattr__(name: str) -> Any:
  if name == '__version__':
    return importlib.metadata.version('seekax')
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
  return sorted(__all__)
