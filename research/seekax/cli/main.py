"""The one command: `seekax <command> [flags]`.

Nothing here imports JAX; a command's module is imported when it is called.
"""

from collections.abc import Sequence
import errno
import importlib
import importlib.metadata
import os
import sys

from seekax.configuration.errors import did_you_mean, InputError
from seekax.files import one_line

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

# Exit codes: 0 done, 2 bad input; a command may return others (3: a value
# wasn't finite, 4: a step gave two different results, 130 and 143: a signal,
# after the state was saved).
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
  _print_anything()
  try:
    code = _run(argv)
    # Flushed here, where an error gets a message; Python would do it later.
    if sys.stdout is not None:
      sys.stdout.flush()
    return code
  except BrokenPipeError:
    # The reader has closed the pipe (`| head`); it has all it wanted.
    _forget_output()
    return 0
  except InputError as error:
    _forget_output()
    _refuse(str(error))
    return error.exit_code
  except OSError as error:  # For example a full disk behind stdout or a file.
    _forget_output()
    advice = '; make room, or write elsewhere' * (error.errno == errno.ENOSPC)
    _refuse(f'{error}{advice}')
    return BAD_INPUT
  except KeyboardInterrupt:
    return INTERRUPTED


def _run(argv: list[str]) -> int:
  if argv[:1] == ['--version']:
    print(f'seekax {importlib.metadata.version("seekax")}')
    return 0
  if not argv or argv[0] in ('--help', '-h', 'help', '--helpfull'):
    print(usage())
    return 0 if argv else BAD_INPUT
  if argv[0] not in COMMANDS:
    raise InputError(
      f'unknown command {argv[0]!r}'
      + (did_you_mean(argv[0], COMMANDS) or '; see seekax --help')
    )
  return importlib.import_module(f'seekax.cli.{argv[0]}').run(argv[1:])


def _refuse(message: str) -> None:
  """Prints an error as one line without the terminal's control sequences."""
  print(f'seekax: {one_line(message)}', file=sys.stderr)


def _print_anything() -> None:
  """Makes both streams replace characters that the encoding lacks."""
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='replace')


def _forget_output() -> None:
  """Drops the rest of stdout, which can't be written; else Python complains."""
  try:
    if sys.stdout is not None:
      sys.stdout.flush()
  except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
