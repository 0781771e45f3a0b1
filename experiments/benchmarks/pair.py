"""Both frameworks on one folder of weights, asked in turn, round by round."""

from collections.abc import Callable
import contextlib
import dataclasses
import pathlib
import statistics
import sys
import time
from typing import Any

import asked
import scoreboard

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = pathlib.Path(__file__).with_name('ours.py')
PEER = ROOT / 'third_party' / 'transformers' / 'peer.py'
THREADS = 2
# A round counts if other programs took no more than this share of the
# processors; fewer than FEWEST rounds are no measurement. The seconds of
# PATIENCE are how long a row waits for more rounds.
QUIET, FEWEST, PATIENCE = 0.1, 5, 60


@dataclasses.dataclass(frozen=True)
class Round:
  """Tokens per second of both, and what other programs took meanwhile."""

  ours: float
  peer: float
  others: float


class Samples:
  """The rounds of a row."""

  def __init__(self):
    self.rounds: list[Round] = []

  def add(self, found: Round) -> None:
    self.rounds.append(found)

  def quiet(self) -> list[Round]:
    return [x for x in self.rounds if x.others <= QUIET]

  def row(self, name: str) -> scoreboard.Row:
    """The row of medians; not measured if too few rounds were quiet."""
    quiet = self.quiet()
    if len(quiet) < FEWEST:
      return scoreboard.compare(name)
    return scoreboard.compare(
      name,
      statistics.median(x.ours for x in quiet),
      statistics.median(x.peer for x in quiet),
    )

  def note(self) -> str:
    """How many rounds there were, and how far they spread."""
    quiet = self.quiet()
    text = f'{len(quiet)} of {len(self.rounds)} rounds undisturbed'
    for side in ('ours', 'peer') if quiet else ():
      rates = [getattr(x, side) for x in quiet]
      text += f', {side} {min(rates):.0f} to {max(rates):.0f}'
    return text


class Pair:
  """Ours and the peer, asked in turn."""

  def __init__(self, ours: asked.Child, peer: asked.Child):
    self.children = {'ours': ours, 'peer': peer}

  def both(self, command: str, **arguments) -> dict[str, Any]:
    """Asks both the same: {'ours': answer, 'peer': answer}."""
    return {
      side: child.ask(command, **arguments)
      for side, child in self.children.items()
    }

  def rounds(
    self,
    tokens: int,
    asks: Callable[[], list[tuple[str, dict]]],
    wanted: int,
  ) -> Samples:
    """Tokens per second of each, round by round.

    There are more rounds than wanted while other programs disturb them, for at
    most a minute and a half.

    Args:
      tokens: tokens of one round.
      asks: gives a round's pairs (command, arguments), whose seconds are added
        up.
      wanted: how many quiet rounds are wanted.
    """
    samples, began = Samples(), time.monotonic()
    while True:
      samples.add(self._round(len(samples.rounds), tokens, asks()))
      enough = len(samples.rounds) >= wanted
      late = time.monotonic() - began > PATIENCE
      if enough and (late or len(samples.quiet()) >= wanted):
        return samples

  def _round(self, number: int, tokens: int, asks) -> Round:
    processes = [child.process for child in self.children.values()]
    before, rates = scoreboard.processor_seconds(*processes), {}
    for side in ('ours', 'peer')[:: -1 if number % 2 else 1]:
      child = self.children[side]
      seconds = sum(child.ask(name, **args)['seconds'] for name, args in asks)
      rates[side] = tokens / seconds
    after = scoreboard.processor_seconds(*processes)
    return Round(**rates, others=scoreboard.others_share(before, after))


def start_ours() -> asked.Child:
  """Our side, without a model."""
  return asked.Child([sys.executable, str(OURS)])


def load_ours(folder: pathlib.Path) -> asked.Child:
  """Our side on a folder."""
  child = start_ours()
  child.ask('load', folder=str(folder))
  return child


def load_peer(oracle: str, folder: pathlib.Path) -> asked.Child:
  """The peer on a folder."""
  return asked.Child([oracle, str(PEER), str(folder), f'--threads={THREADS}'])


@contextlib.contextmanager
def started(oracle: str, folder: pathlib.Path):
  """Both sides on a folder.

  Raises:
    AssertionError: their models have different numbers of parameters.
  """
  with load_ours(folder) as ours, load_peer(oracle, folder) as peer:
    pair = Pair(ours, peer)
    sizes = {x['parameters'] for x in pair.both('about').values()}
    if len(sizes) != 1:
      raise AssertionError(f'the models have {sizes} parameters')
    yield pair
