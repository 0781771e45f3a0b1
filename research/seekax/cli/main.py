"""The one command: `seekax <command> [flags]`.

Nothing here imports JAX; a command's module is imported when it is called.
"""

from collections.abc import Sequence
import importlib
import os
import sys

from seekax.config import did_you_mean, InputError

COMMANDS = {
  'train': 'train a model, or go on with a run that was stopped',
  'generate': 'continue a prompt with a trained model',
  'score': 'log-likelihood of a text or of token ids, and logits',
  'convert': 'published weights to a workdir, or a model to published weights',
  'inspect': 'look at a model or a run: parameters, tensors, checksums, hash',
  'plan': 'what training and serving a model costs: hours, dollars, memory',
  'tokenize': 'text to shards of tokens that training reads',
  'report': 'write report.html and summary.json of a run',
}

# Exit codes: 0 done, 2 bad input; a command may return others (3: stopped by
# non-finite values, 4: by a step that gave two results, 130 and 143: by a
# signal, state saved).
BAD_INPUT = 2
INTERRUPTED = 130


def usage() -> str:
  """The text of `seekax --help`."""
  width = max(map(len, COMMANDS))
  lines = [f'  {name:<{width}}  {text}' for name, text in COMMANDS.items()]
  return '\n'.join(
    [
      'seekax: DeepSeek-V3 as open research software in JAX.',
      '',
      'Usage: seekax <command> [flags]',
      '',
      *lines,
      '',
      'seekax <command> --help lists flags, presets and config keys.',
      'Results go to stdout, logs and progress to stderr.',
    ]
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns its exit code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in ('--help', '-h', 'help', '--helpfull'):
    print(usage())
    return 0 if argv else BAD_INPUT
  try:
    if argv[0] not in COMMANDS:
      raise InputError(
        f'unknown command {argv[0]!r}'
        + (did_you_mean(argv[0], COMMANDS) or '; see seekax --help')
      )
    command = importlib.import_module(f'seekax.cli.{argv[0]}')
    return command.run(argv[1:])
  except InputError as error:
    print(f'seekax: {" ".join(str(error).split())}', file=sys.stderr)
    return BAD_INPUT
  except BrokenPipeError:
    # The reader went away (`| head`); it has what it wanted.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except OSError as error:  # A disk that is full, a file that is gone.
    print(f'seekax: {" ".join(str(error).split())}', file=sys.stderr)
    return BAD_INPUT
  except KeyboardInterrupt:
    return INTERRUPTED
