"""`python -m seekax`, and the installed `seekax` command."""

import gc
import sys

from seekax.cli.main import main


def entry_point() -> None:
  """Runs the command line and exits with its code."""
  # Imports and tracing make objects by the million, few of them garbage.
  # Looking for it less often saves a twentieth of a command's start.
  gc.set_threshold(50_000, 20, 100)
  sys.exit(main())


if __name__ == '__main__':
  entry_point()
