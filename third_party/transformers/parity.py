"""Compares seekax with Hugging Face transformers, live; see `make parity`.

  parity.py --oracle=PYTHON [--out=runs/parity] [--csv=FILE] [--run=WORKDIR]
    [--part=NAME ...]

Runs in the project's environment and imports no torch: transformers answers in
a child, whose Python is --oracle. A Markdown table goes to stdout and, if all
parts ran, the same rows to --csv. Exit codes: 0 all bounds hold, 1 one is
broken, 2 something can't run, said in one line.
"""

import argparse
from collections.abc import Iterator
import functools
import pathlib
import shutil
import sys
import time

import against_float8
import against_models
import against_mtp
import against_trained
import against_training
import asking
import jax
import table

from seekax.configuration.errors import InputError

PARTS = {
  'models': against_models.compare,
  'routers': against_models.route,
  'mtp': against_mtp.compare,
  'training': against_training.compare,
  'float8': against_float8.compare,
  'trained': against_trained.compare,
}
RESULTS = pathlib.Path(__file__).with_name('results') / 'parity.csv'
FAILED, CAN_NOT_RUN = 1, 2


def parser() -> argparse.ArgumentParser:
  """The flags."""
  top = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  path = pathlib.Path
  top.add_argument(
    '--oracle', type=path, required=True, help='a Python with transformers'
  )
  top.add_argument(
    '--out', type=path, default=path('runs/parity'), help='made anew'
  )
  top.add_argument('--csv', type=path, default=RESULTS)
  top.add_argument('--run', type=path, help='a trained workdir of yours')
  top.add_argument(
    '--part', action='append', choices=PARTS, help='not all; no CSV'
  )
  return top


def measure(args: argparse.Namespace) -> Iterator[table.Row]:
  """Everything, part by part; says on stderr how far it is."""
  out = args.out.resolve()
  work, oracle = out / 'ours', asking.Oracle(args.oracle, out)
  for folder in (work, oracle.built, oracle.answers):
    shutil.rmtree(folder, ignore_errors=True)
  work.mkdir(parents=True)
  parts = dict(PARTS)
  if args.run:
    parts['trained'] = functools.partial(parts['trained'], run=args.run)
  start = time.monotonic()
  oracle.run('build', f'--out={oracle.built}')
  _say('transformers built its models', start)
  for name in args.part or parts:
    start = time.monotonic()
    yield from parts[name](oracle, work)
    _say(name, start)


def _say(what: str, start: float) -> None:
  seconds = time.monotonic() - start
  print(f'{what}: {seconds:.0f} s', file=sys.stderr, flush=True)


def main() -> int:
  args = parser().parse_args()
  # The bounds are those of exact float32 products.
  jax.config.update('jax_platforms', 'cpu')
  try:
    rows = list(measure(args))
    if not args.part:
      table.write(rows, args.csv)
  except (asking.Unable, InputError, OSError) as error:
    print(f'parity: {error}', file=sys.stderr)
    return CAN_NOT_RUN
  print(table.markdown(rows))
  broken = [row for row in rows if row.verdict == table.BROKEN]
  for row in broken:
    print(f'broken: {row.check}, {row.model}', file=sys.stderr)
  return FAILED if broken else 0


if __name__ == '__main__':
  sys.exit(main())
