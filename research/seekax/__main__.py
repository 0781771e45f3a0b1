"""`python -m seekax`, and the installed `seekax` command."""

import sys

from seekax.cli.main import main


def entry_point() -> None:
  """Runs the command line and exits with its code."""
  sys.exit(main())


if __name__ == '__main__':
  entry_point()
