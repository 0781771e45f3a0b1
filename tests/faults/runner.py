"""A process that runs commands in turn; run as one by commands.Runner.

A command of a process of its own spends three quarters of its time on imports
and on tracing the model. What nobody hurts needn't pay that each time. Every
line of stdin is [words, log] as JSON; its answer on stdout is the exit code.
"""

import json
import os
import sys
import traceback

from seekax.cli import main


def run(words: list[str], log: str) -> int:
  """The exit code; what it prints to stderr goes to the log, as by a shell."""
  descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(descriptor, 2)
  os.close(descriptor)
  try:
    return main.main(words)
  except SystemExit as end:
    return int(end.code or 0)
  except BaseException:
    traceback.print_exc()
    return 1
  finally:
    sys.stderr.flush()


if __name__ == '__main__':
  answers = os.fdopen(os.dup(1), 'w')
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 1)
  for line in sys.stdin:
    print(run(*json.loads(line)), file=answers, flush=True)
